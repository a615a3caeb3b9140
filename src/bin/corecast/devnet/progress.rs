//! The progress bar: files, bytes and rate, on a terminal's stderr only.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;

/// A bar over bytes, with the files beside it.
pub(crate) struct Progress {
    bar: ProgressBar,
    files: u64,
}

impl Progress {
    /// A bar up to `bytes` bytes and `files` files. Invisible when stderr is no terminal.
    pub(crate) fn new(what: &'static str, files: u64, bytes: u64) -> Progress {
        let visible = std::io::stderr().is_terminal();
        let target =
            if visible { ProgressDrawTarget::stderr_with_hz(10) } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(bytes), target);
        let template = "{prefix} [{wide_bar}] {msg} files · {bytes}/{total_bytes} · {bytes_per_sec} · {eta}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(what);
        Progress { bar, files }
    }

    /// So much is done.
    pub(crate) fn show(&self, files: u64, bytes: u64) {
        self.bar.set_message(format!("{files}/{}", self.files));
        self.bar.set_position(bytes);
    }
}

impl Drop for Progress {
    /// Leaves the terminal clean for what is printed next.
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
