//! Runs scenarios and tells how they went.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anneal_tests::rack::paths::Paths;
use anneal_tests::sim::accel::{self, Accel};
use anneal_tests::sim::isolate::{self, End};
use anneal_tests::sim::process::tail;

/// One thing that must hold.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// Its name: a sentence with underscores.
    pub name: &'static str,
    /// What is tried.
    pub run: fn(&Path) -> anyhow::Result<()>,
    /// One that takes longer, on a busy host too, hangs: it is stopped, and the others go on.
    pub limit: Duration,
}

impl Scenario {
    /// One that is over within the usual limit.
    pub const fn new(name: &'static str, run: fn(&Path) -> anyhow::Result<()>) -> Self {
        let limit = LIMIT;
        Self { name, run, limit }
    }

    /// The same with a limit of its own.
    pub const fn within(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }
}

/// How a scenario went.
#[derive(Debug)]
pub struct Verdict {
    /// Its name.
    pub name: &'static str,
    /// What is said when it failed.
    pub failed: Option<String>,
}

/// How long most may take: an agent that writes a small image once or twice, on a busy host.
const LIMIT: Duration = Duration::from_secs(900);
/// How long all of them may take together: what has not begun by then fails, what runs is stopped.
const TOTAL: Duration = Duration::from_secs(2 * 3600);
/// How many run at once: machines are emulated, and each keeps a core busy.
const AT_ONCE: usize = 2;
/// How much of a failed scenario's output is shown.
const SHOWN_LINES: usize = 60;

/// Inside the namespaces: runs the one scenario that was asked for.
pub fn inside(
    all: &[Scenario],
    on_request: &[(Scenario, &str)],
    work: &Path,
    args: &[OsString],
) -> ExitCode {
    let on_request = on_request.iter().map(|(scenario, _)| scenario);
    let Some(scenario) = all
        .iter()
        .chain(on_request)
        .find(|scenario| args.first().is_some_and(|name| *name == *scenario.name))
    else {
        eprintln!("no such scenario: {args:?}");
        return ExitCode::FAILURE;
    };
    match (scenario.run)(work) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("\n{} failed: {error:#}\n{}", scenario.name, logs(work));
            ExitCode::FAILURE
        }
    }
}

/// The last words of daemon and machine.
fn logs(work: &Path) -> String {
    ["daemon.log", "m1.console.log"]
        .map(|log| format!("--- {log}\n{}", tail(&work.join(log), SHOWN_LINES / 3)))
        .join("\n")
}

/// Outside: runs those that match and prints the standard harness's lines. Those on request run with
/// `--ignored`, and then only those.
pub fn outer(all: &[Scenario], on_request: &[(Scenario, &str)], args: &[OsString]) -> ExitCode {
    let words: Vec<String> = args
        .iter()
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    if words.iter().any(|word| word == "--list") {
        let on_request = on_request.iter().map(|(scenario, _)| scenario);
        for scenario in all.iter().chain(on_request) {
            println!("{}: test", scenario.name);
        }
        return ExitCode::SUCCESS;
    }
    let Chosen {
        run,
        ignored,
        left_out,
    } = choose(all, on_request, &words);
    let (work, accel) = match prepare() {
        Ok(prepared) => prepared,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    println!("\nrunning {} tests", run.len() + ignored.len());
    for (scenario, why) in &ignored {
        println!("test {} ... ignored, {why}", scenario.name);
    }
    let begin = Instant::now();
    let verdicts = run_all(&work, accel, run, TOTAL);
    let failed = verdicts.iter().filter(|v| v.failed.is_some()).count();
    println!(
        "\ntest result: {}. {} passed; {failed} failed; {} ignored; 0 measured; {left_out} filtered out; finished in {:.2}s\n",
        if failed == 0 { "ok" } else { "FAILED" },
        verdicts.len() - failed,
        ignored.len(),
        begin.elapsed().as_secs_f64()
    );
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Which scenarios are meant.
struct Chosen<'a> {
    run: VecDeque<Scenario>,
    /// They would be, if they were asked for; why they have to be.
    ignored: Vec<(Scenario, &'a str)>,
    left_out: usize,
}

/// Of the standard harness's options only `--ignored` has a meaning here; names select.
fn choose<'a>(
    all: &[Scenario],
    on_request: &[(Scenario, &'a str)],
    words: &[String],
) -> Chosen<'a> {
    let names: Vec<&String> = words.iter().filter(|word| !word.starts_with('-')).collect();
    let named =
        |s: &Scenario| names.is_empty() || names.iter().any(|name| s.name.contains(name.as_str()));
    let mut run: VecDeque<_> = all.iter().copied().filter(named).collect();
    let mut ignored: Vec<_> = on_request
        .iter()
        .copied()
        .filter(|(s, _)| named(s))
        .collect();
    if words.iter().any(|word| word == "--ignored") {
        run = ignored.drain(..).map(|(scenario, _)| scenario).collect();
    }
    Chosen {
        left_out: all.len() + on_request.len() - run.len() - ignored.len(),
        run,
        ignored,
    }
}

/// Makes the working directory, and finds out once how machines are run.
fn prepare() -> anyhow::Result<(PathBuf, Accel)> {
    let paths = Paths::find()?;
    let kernel = paths.netboot.join("vmlinuz");
    paths.ensure(&[(&kernel, "netboot"), (&paths.anneal, "build")])?;
    Ok((paths.new_work("scenarios")?, accel::detect(&kernel)?))
}

/// Runs them, all together for no longer than `total`.
pub fn run_all(
    work: &Path,
    accel: Accel,
    chosen: VecDeque<Scenario>,
    total: Duration,
) -> Vec<Verdict> {
    let begin = Instant::now();
    let queue = Mutex::new(chosen);
    let take = || {
        queue
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .pop_front()
    };
    // Children live no longer than the thread that made them: each thread stays until all its
    // scenarios are over.
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_ONCE)
            .map(|_| {
                scope.spawn(|| {
                    let mut verdicts = Vec::new();
                    while let Some(scenario) = take() {
                        let left = total.saturating_sub(begin.elapsed());
                        verdicts.push(run_one(work, accel, scenario, left));
                    }
                    verdicts
                })
            })
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| match thread.join() {
                Ok(verdicts) => verdicts,
                Err(panic) => std::panic::resume_unwind(panic),
            })
            .collect()
    })
}

/// Runs one, while there is time `left` for all of them, and prints how it went.
fn run_one(work: &Path, accel: Accel, scenario: Scenario, left: Duration) -> Verdict {
    let begin = Instant::now();
    let limit = scenario.limit.min(left);
    let failed = if limit.is_zero() {
        Some("not run: the time for all scenarios together was over".to_owned())
    } else {
        failure(work, accel, scenario, limit)
    };
    let word = if failed.is_none() { "ok" } else { "FAILED" };
    let (name, seconds) = (scenario.name, begin.elapsed().as_secs_f64());
    println!("test {name} ... {word} <{seconds:.1}s>");
    if let Some(text) = &failed {
        println!("\n---- {name} ----\n{text}\n");
    }
    Verdict { name, failed }
}

/// What is to be said of a scenario that failed.
fn failure(work: &Path, accel: Accel, scenario: Scenario, limit: Duration) -> Option<String> {
    let work = work.join(scenario.name);
    match isolated(&work, accel, scenario, limit) {
        Ok((end, _)) if end.success() => None,
        Ok((End::Interrupted, _)) => std::process::exit(130),
        Ok((End::TimedOut, output)) => Some(format!(
            "stopped: it was not over after {} s\n{}\n{}",
            limit.as_secs(),
            tail(&output, SHOWN_LINES),
            logs(&work)
        )),
        Ok((end, output)) => Some(format!("{end:?}\n{}", tail(&output, SHOWN_LINES))),
        Err(error) => Some(format!("{error:#}")),
    }
}

fn isolated(
    work: &Path,
    accel: Accel,
    scenario: Scenario,
    limit: Duration,
) -> anyhow::Result<(End, PathBuf)> {
    std::fs::create_dir_all(work)?;
    let output = work.join("output.log");
    let file = std::fs::File::create(&output)?;
    let end = isolate::run(
        work,
        &[scenario.name.into()],
        limit,
        Some(file),
        &[(accel::VARIABLE, accel.qemu())],
    )?;
    if end.success() {
        std::fs::remove_dir_all(work)?;
    }
    Ok((end, output))
}
