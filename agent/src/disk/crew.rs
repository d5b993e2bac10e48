//! Several threads at one piece of work, watched by the thread that started them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use anneal_protocol::agent::StepFailure;

/// How often the watcher looks.
const LOOK: Duration = Duration::from_millis(100);

/// Called now and then with the bytes done so far; an error stops the work.
pub type Watch<'a> = &'a mut dyn FnMut(u64) -> Result<(), StepFailure>;

/// What the threads share.
#[derive(Debug, Default)]
pub struct Crew {
    stopped: AtomicBool,
    done: AtomicU64,
}

impl Crew {
    /// Whether to end early: another thread failed, or the work is no longer wanted.
    #[must_use]
    pub fn stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Counts bytes for the watcher.
    pub fn done(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Runs `work` on so many threads, each told its number, until all return. `stop` is called once
/// when they are to end early: it wakes those that wait.
///
/// # Errors
/// The first failure of a thread or of the watcher.
pub fn run(
    threads: usize,
    work: &(dyn Fn(usize, &Crew) -> Result<(), StepFailure> + Sync),
    stop: &dyn Fn(),
    watch: Watch<'_>,
) -> Result<(), StepFailure> {
    let crew = &Crew::default();
    let mut outcome = Ok(());
    std::thread::scope(|scope| {
        let (sender, results) = mpsc::channel();
        for number in 0..threads.max(1) {
            let sender = sender.clone();
            scope.spawn(move || {
                // Nobody listens only when the watcher panicked.
                let _ = sender.send(work(number, crew));
            });
        }
        drop(sender);
        let mut end = |failure: StepFailure| {
            if outcome.is_ok() {
                outcome = Err(failure);
                crew.stopped.store(true, Ordering::Relaxed);
                stop();
            }
        };
        loop {
            match results.recv_timeout(LOOK) {
                Ok(Ok(())) => {}
                Ok(Err(failure)) => end(failure),
                Err(RecvTimeoutError::Timeout) => {
                    if let Err(failure) = watch(crew.done.load(Ordering::Relaxed)) {
                        end(failure);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
    });
    outcome?;
    watch(crew.done.load(Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::abandoned;
    use anneal_protocol::agent::FailureCode;

    #[test]
    fn one_failure_stops_all() {
        let work = |number, crew: &Crew| {
            if number == 2 {
                return Err(crate::step::fail(FailureCode::DiskIo, "broken"));
            }
            while !crew.stopped() {
                std::thread::yield_now();
            }
            Ok(())
        };
        let stops = std::cell::Cell::new(0);
        let outcome = run(4, &work, &|| stops.set(stops.get() + 1), &mut |_| Ok(()));
        assert_eq!(outcome.unwrap_err().code, FailureCode::DiskIo);
        assert_eq!(stops.get(), 1);
    }

    #[test]
    fn the_watcher_stops_it_and_sees_the_end() {
        let forever = |_, crew: &Crew| {
            while !crew.stopped() {
                std::thread::yield_now();
            }
            Ok(())
        };
        let outcome = run(2, &forever, &|| (), &mut |_| Err(abandoned()));
        assert_eq!(outcome.unwrap_err().code, FailureCode::Abandoned);

        let mut seen = 0;
        let count = |_, crew: &Crew| {
            crew.done(5);
            Ok(())
        };
        run(3, &count, &|| (), &mut |done| {
            seen = done;
            Ok(())
        })
        .unwrap();
        assert_eq!(seen, 15);
    }
}
