//! What people wait for who wait longer than a second.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// How long nobody asks what is going on.
const PATIENCE: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(120);

/// Does some work; at a terminal it is said what it is and how long it takes, once it takes long.
pub async fn told<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    if !std::io::stderr().is_terminal() {
        return work.await;
    }
    tokio::select! {
        done = &mut work => return done,
        () = tokio::time::sleep(PATIENCE) => {}
    }
    let style = ProgressStyle::with_template("{spinner} {msg} ({elapsed})");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_spinner());
    let shown = ProgressBar::new_spinner().with_style(style).with_message(what.to_owned());
    shown.enable_steady_tick(TICK);
    let done = work.await;
    shown.finish_and_clear();
    done
}
