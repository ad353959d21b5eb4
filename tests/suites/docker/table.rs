//! Checks are played side by side, and their results told as a table.

use std::any::Any;
use std::cell::RefCell;
use std::fmt::Write as _;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any, set_hook};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::left::nothing_left;
use corten_tests::engine::Engine;

/// What must be true, and the function that panics if it is not.
pub type Check = (&'static str, fn(&Engine));
/// Checks of one subject.
pub type Area = (&'static str, &'static [Check]);

/// How a check ended.
enum Outcome {
    Holds,
    Skipped(String),
    Fails(String),
}

/// A line of the table.
struct Row<'a> {
    area: &'a str,
    what: &'a str,
    outcome: Outcome,
    time: std::time::Duration,
}

/// Why a check cannot run on this machine.
struct Reason(String);

/// Ends the running check: it cannot run on this machine.
pub fn skip(reason: &str) -> ! {
    panic_any(Reason(reason.to_owned()))
}

thread_local! {
    static MESSAGE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Plays the checks, so many at a time, and at last looks for what is left; tells each result as it comes; to the file that `DOCKER_TABLE` names too.
/// `DOCKER_ONLY` plays those that contain its text.
///
/// # Panics
/// When a check does not hold, with all of them.
pub fn play(engine: &Engine, threads: usize, areas: &[Area]) {
    set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let payload = info.payload();
        let text = payload.downcast_ref::<String>().cloned();
        let text =
            text.or_else(|| payload.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default();
        MESSAGE.with(|message| *message.borrow_mut() = format!("{place}: {text}"));
        if std::thread::current().name().is_some() {
            eprintln!("{place}: {text}");
        }
    }));
    let only = std::env::var("DOCKER_ONLY").unwrap_or_default();
    let checks: Vec<(&str, Check)> = areas
        .iter()
        .flat_map(|(area, checks)| checks.iter().map(move |check| (*area, *check)))
        .filter(|(area, check)| format!("{area}: {}", check.0).contains(&only))
        .collect();
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    let Some((area, check)) = checks.get(place) else { break };
                    let begun = std::time::Instant::now();
                    let outcome = hold(engine, *check);
                    let row = Row { area, what: check.0, outcome, time: begun.elapsed() };
                    outcomes.lock().unwrap().push((place, row));
                }
            });
        }
    });
    let mut outcomes = outcomes.into_inner().unwrap();
    outcomes.sort_by_key(|(place, _)| *place);
    let mut rows: Vec<Row> = outcomes.into_iter().map(|(_, row)| row).collect();
    let begun = std::time::Instant::now();
    let outcome = hold(engine, (LEFT, nothing_left));
    // The same words for each group of checks: which one it was, the first of its subjects tells.
    let area = areas.first().map_or("", |(area, _)| *area);
    rows.push(Row { area, what: LEFT, outcome, time: begun.elapsed() });
    tell(engine, &rows);
}

const LEFT: &str = "afterwards nothing is left";

fn hold(engine: &Engine, check: Check) -> Outcome {
    match catch_unwind(AssertUnwindSafe(|| check.1(engine))) {
        Ok(()) => Outcome::Holds,
        Err(payload) => ended(payload.as_ref()),
    }
}

fn ended(payload: &(dyn Any + Send)) -> Outcome {
    payload.downcast_ref::<Reason>().map_or_else(
        || Outcome::Fails(MESSAGE.with(|message| message.borrow().clone())),
        |Reason(reason)| Outcome::Skipped(reason.clone()),
    )
}

fn tell(engine: &Engine, outcomes: &[Row]) {
    let (mut failures, mut rows) = (String::new(), String::new());
    let below = if engine.reference { "Debian" } else { "corten" };
    for Row { area, what, outcome, time } in outcomes {
        let word = match outcome {
            Outcome::Holds => "yes".to_owned(),
            Outcome::Skipped(reason) => format!("skipped: {reason}"),
            Outcome::Fails(why) => {
                writeln!(failures, "--- {area}: {what}\n{why}").unwrap();
                "NO".to_owned()
            }
        };
        println!("{:6.1} s  {area}: {what}: {word}", time.as_secs_f64());
        writeln!(rows, "{area}\t{what}\t{}\t{below}\t{word}", engine.kind.name()).unwrap();
    }
    if let Some(path) = std::env::var_os("DOCKER_TABLE") {
        let mut file = std::fs::File::options().create(true).append(true).open(path).unwrap();
        file.write_all(rows.as_bytes()).unwrap();
    }
    assert!(failures.is_empty(), "Docker {} over {below}:\n{failures}", engine.kind.name());
}
