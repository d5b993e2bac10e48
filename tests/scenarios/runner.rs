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
}

/// No scenario takes longer, not even a whole system that starts twice on a busy host.
const LIMIT: Duration = Duration::from_secs(2000);
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
            println!("\n{} failed: {error:#}", scenario.name);
            for log in ["daemon.log", "m1.console.log"] {
                println!("--- {log}\n{}", tail(&work.join(log), SHOWN_LINES / 3));
            }
            ExitCode::FAILURE
        }
    }
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
    let verdicts = run_all(&work, accel, run);
    let failed = verdicts.iter().filter(|verdict| !**verdict).count();
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

fn run_all(work: &Path, accel: Accel, chosen: VecDeque<Scenario>) -> Vec<bool> {
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
                        verdicts.push(run_one(work, accel, scenario));
                    }
                    verdicts
                })
            })
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap_or_else(|_| vec![false]))
            .collect()
    })
}

fn run_one(work: &Path, accel: Accel, scenario: Scenario) -> bool {
    let begin = Instant::now();
    let (verdict, text) = match isolated(work, accel, scenario) {
        Ok((end, _)) if end.success() => (true, String::new()),
        Ok((End::Interrupted, _)) => std::process::exit(130),
        Ok((end, output)) => (false, format!("{end:?}\n{}", tail(&output, SHOWN_LINES))),
        Err(error) => (false, format!("{error:#}")),
    };
    println!(
        "test {} ... {} <{:.1}s>",
        scenario.name,
        if verdict { "ok" } else { "FAILED" },
        begin.elapsed().as_secs_f64()
    );
    if !verdict {
        println!("\n---- {} ----\n{text}\n", scenario.name);
    }
    verdict
}

fn isolated(work: &Path, accel: Accel, scenario: Scenario) -> anyhow::Result<(End, PathBuf)> {
    let work = work.join(scenario.name);
    std::fs::create_dir_all(&work)?;
    let output = work.join("output.log");
    let file = std::fs::File::create(&output)?;
    let end = isolate::run(
        &work,
        &[scenario.name.into()],
        LIMIT,
        Some(file),
        &[(accel::VARIABLE, accel.qemu())],
    )?;
    if end.success() {
        std::fs::remove_dir_all(&work)?;
    }
    Ok((end, output))
}
