//! The terminal: raw and on a screen of its own while this lives, as it was afterwards, however the program ends.

use std::io::{self, Read, Stdout};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ratatui::Frame;
use ratatui::backend::TermionBackend;
use ratatui::termion::event::{self, Event};
use ratatui::termion::raw::{IntoRawMode, RawTerminal};
use ratatui::termion::screen::{AlternateScreen, IntoAlternateScreen};

/// Told to end by a signal; the handler may only say so.
static ENDS: AtomicBool = AtomicBool::new(false);

/// What an operator presses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Char(char),
    Enter,
    Escape,
    Up,
    Down,
    /// Ctrl-C, or the terminal's end.
    Interrupt,
}

/// See the module.
pub(super) struct Terminal {
    inner: ratatui::Terminal<TermionBackend<AlternateScreen<RawTerminal<Stdout>>>>,
}

impl Terminal {
    /// Takes the terminal.
    pub(super) fn take() -> io::Result<Terminal> {
        extern "C" fn ends(_: libc::c_int) {
            ENDS.store(true, Ordering::Relaxed);
        }
        // Interrupts the wait for keys, so that the next picture has the new size.
        extern "C" fn resized(_: libc::c_int) {}
        let (ends, resized) = (ends as extern "C" fn(libc::c_int), resized as extern "C" fn(libc::c_int));
        for (signal, handler) in [(libc::SIGTERM, ends), (libc::SIGHUP, ends), (libc::SIGWINCH, resized)] {
            // SAFETY: the handlers touch at most an atomic.
            unsafe { libc::signal(signal, handler as libc::sighandler_t) };
        }
        let screen = io::stdout().into_raw_mode()?.into_alternate_screen()?;
        let mut inner = ratatui::Terminal::new(TermionBackend::new(screen))?;
        inner.hide_cursor()?;
        Ok(Terminal { inner })
    }

    /// Shows a picture.
    pub(super) fn draw(&mut self, picture: impl FnOnce(&mut Frame<'_>)) -> io::Result<()> {
        self.inner.draw(picture).map(|_| ())
    }

    /// The keys that come within a time; none when it is over, or when the terminal has another size now.
    pub(super) fn keys(&mut self, patience: Duration) -> io::Result<Vec<Key>> {
        let mut stdin = io::stdin().lock();
        let mut wanted = libc::pollfd { fd: stdin.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let patience_ms = patience.as_millis().min(60_000) as libc::c_int + 1;
        // SAFETY: one structure of ours, which outlives the call.
        let ready = unsafe { libc::poll(&mut wanted, 1, patience_ms) };
        if ENDS.load(Ordering::Relaxed) {
            return Ok(vec![Key::Interrupt]);
        }
        if ready <= 0 {
            return Ok(Vec::new());
        }
        let mut bytes = [0; 256];
        let count = stdin.read(&mut bytes)?;
        if count == 0 {
            return Ok(vec![Key::Interrupt]);
        }
        Ok(parse(&bytes[..count]))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.inner.show_cursor().ok();
    }
}

/// The keys in what a terminal has sent.
fn parse(bytes: &[u8]) -> Vec<Key> {
    let mut rest = bytes.iter().map(|byte| Ok(*byte));
    let mut keys = Vec::new();
    while let Some(Ok(first)) = rest.next() {
        if first == 0x1b && rest.len() == 0 {
            keys.push(Key::Escape);
            break;
        }
        keys.extend(match event::parse_event(first, &mut rest) {
            Ok(Event::Key(event::Key::Char('\n' | '\r'))) => Some(Key::Enter),
            Ok(Event::Key(event::Key::Char(letter))) => Some(Key::Char(letter)),
            Ok(Event::Key(event::Key::Up)) => Some(Key::Up),
            Ok(Event::Key(event::Key::Down)) => Some(Key::Down),
            Ok(Event::Key(event::Key::Esc)) => Some(Key::Escape),
            Ok(Event::Key(event::Key::Ctrl('c' | 'd'))) => Some(Key::Interrupt),
            _ => None,
        });
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_sends_is_understood() {
        assert_eq!(parse(b"qs\r"), [Key::Char('q'), Key::Char('s'), Key::Enter]);
        assert_eq!(parse(b"\x1b[A\x1b[Bj"), [Key::Up, Key::Down, Key::Char('j')]);
        assert_eq!(parse(b"\x1b"), [Key::Escape]);
        assert_eq!(parse(b"\x03"), [Key::Interrupt]);
        assert_eq!(parse(b"\x1b[200~\xff\xfe"), []);
    }
}
