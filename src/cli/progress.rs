//! How far a long command is: a bar on a terminal, now and then a line elsewhere; both on standard error.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// How often a line is written where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// The progress of one command.
pub(super) enum Progress {
    /// A person is watching.
    Bar(ProgressBar),
    /// It goes to a log.
    Lines {
        /// What begins each line.
        what: &'static str,
        begun: Instant,
        last: Instant,
    },
}

impl Progress {
    /// `what` is being done.
    pub(super) fn new(what: &'static str) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self::Lines { what, begun: Instant::now(), last: Instant::now() };
        }
        let bar = ProgressBar::new_spinner().with_prefix(what).with_message("reading");
        bar.enable_steady_tick(Duration::from_millis(200));
        Self::Bar(bar)
    }

    /// `done` of `total` are done; `message` says more.
    pub(super) fn at(&mut self, done: u64, total: u64, message: String) {
        match self {
            Self::Bar(bar) => {
                if bar.length().is_none() {
                    let template = "{prefix} {wide_bar} {human_pos}/{human_len} {per_sec} {eta} {msg}";
                    bar.set_style(
                        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
                    );
                }
                bar.set_length(total);
                bar.set_position(done);
                bar.set_message(message);
            }
            Self::Lines { what, begun, last } => {
                if last.elapsed() < LINE_INTERVAL {
                    return;
                }
                *last = Instant::now();
                let seconds = begun.elapsed().as_secs().max(1);
                let percent = (done * 100).checked_div(total).unwrap_or(100);
                eprintln!("{what}: {done} of {total} ({percent} %), {} a second, {message}", done / seconds);
            }
        }
    }

    /// What follows is no progress any more.
    pub(super) fn end(self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}
