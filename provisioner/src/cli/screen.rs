//! Where followed work is shown: lines on standard output, and on a terminal progress bars below
//! them.

use std::io::IsTerminal as _;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{output, time};

/// The terminal or file that people watch.
#[derive(Debug)]
pub struct Screen {
    bars: Option<MultiProgress>,
}

impl Screen {
    /// The screen of this process: bars only where standard output and error are a terminal.
    pub fn new() -> Self {
        let terminal = std::io::stdout().is_terminal() && std::io::stderr().is_terminal();
        let bars = terminal
            .then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10)));
        Self { bars }
    }

    /// Prints a line above the bars.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn line(&self, text: &str) -> anyhow::Result<()> {
        let line = format!("{text}\n");
        match &self.bars {
            Some(bars) => bars.suspend(|| output::print(&line)),
            None => output::print(&line),
        }
    }

    /// A place to show how far something is.
    pub fn meter<'a>(&'a self, label: &str) -> Meter<'a> {
        Meter {
            screen: self,
            label: label.to_owned(),
            bar: None,
            told: None,
        }
    }
}

/// How far one piece of work is: a bar on a terminal, else a line every tenth.
#[derive(Debug)]
pub struct Meter<'a> {
    screen: &'a Screen,
    label: String,
    bar: Option<ProgressBar>,
    /// What was being done and the last tenth that was told.
    told: Option<(String, u64)>,
}

impl Meter<'_> {
    /// Shows that `done` of `total` bytes of `what` are there.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn show(&mut self, what: &str, done: u64, total: u64) -> anyhow::Result<()> {
        let Some(bars) = &self.screen.bars else {
            return self.tell(what, done, total);
        };
        let bar = self.bar.get_or_insert_with(|| {
            let bar = bars.add(ProgressBar::new(total));
            let style = "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
            bar.set_style(
                ProgressStyle::with_template(style)
                    .unwrap_or_else(|_| ProgressStyle::default_bar())
                    .progress_chars("=> "),
            );
            bar
        });
        bar.set_length(total);
        bar.set_message(format!("{}{what}", self.label));
        bar.set_position(done);
        Ok(())
    }

    /// Takes the bar away: the work goes on with something else.
    pub fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        self.told = None;
    }

    fn tell(&mut self, what: &str, done: u64, total: u64) -> anyhow::Result<()> {
        let tenth = done.saturating_mul(10) / total.max(1);
        let new = match &self.told {
            Some((told, last)) => told != what || tenth > *last,
            None => true,
        };
        if !new {
            return Ok(());
        }
        self.told = Some((what.to_owned(), tenth));
        let (label, percent) = (&self.label, tenth * 10);
        let (done, total) = (time::bytes(done), time::bytes(total));
        self.screen
            .line(&format!("{label}{what}: {percent}% ({done} of {total})"))
    }
}
