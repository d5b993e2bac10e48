//! One transfer as a state machine: packets and timeouts in, what to send out.
//!
//! Owns: negotiation ([`grant`]), the window of RFC 7440 (a window of 1 is RFC 1350), block
//! numbers that wrap, and when to repeat and when to give up.
//!
//! Invariants: blocks are counted from 1 without wrapping inside; only the wire sees 16 bits. A
//! duplicate ACK never causes a block to be sent at once (the "sorcerer's apprentice", RFC 1123,
//! section 4.2.3.1). Every transfer ends after finitely many inputs.
//!
//! Not here: sockets, time and files. [`Step`] says what the edge does.

use std::time::Duration;

use super::packet::{DEFAULT_BLOCK, Options};

/// How long the first repetition waits when the client names no time; later ones wait longer.
const FIRST_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest wait between repetitions that we choose ourselves.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(4);
/// Wait after a repeated ACK in a window: the window's first block was probably lost.
const HURRY: Duration = Duration::from_millis(100);
/// Repetitions without progress before a client counts as gone.
const REPETITIONS: u32 = 6;
/// Blocks in one window at most: 64 of 1468 bytes fit a socket's buffer.
const MAX_WINDOW: u16 = 64;

/// What we grant of what a client asks for. `max_block` keeps a packet within the MTU.
#[must_use]
pub fn grant(asked: &Options, max_block: u16) -> Options {
    Options {
        blksize: asked.blksize.map(|size| size.min(max_block)),
        windowsize: asked.windowsize.map(|window| window.min(MAX_WINDOW)),
        ..*asked
    }
}

/// What the edge does next; it then waits for [`Transfer::patience`], unless the transfer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Send the OACK.
    SendOack,
    /// Send these blocks, both included; see [`Transfer::block`].
    SendBlocks {
        /// First.
        first: u64,
        /// Last.
        last: u64,
    },
    /// Keep waiting as before.
    Wait,
    /// Wait for [`Transfer::patience`] from now.
    WaitAgain,
    /// The transfer ended.
    End(End),
}

/// How a transfer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The client has every block.
    Complete,
    /// The client asked for options only (the size), then left: no transfer at all.
    Probe,
    /// The client gave up in the middle.
    Aborted,
    /// The client fell silent.
    Silent,
}

/// A transfer to one client.
#[derive(Debug, Clone)]
pub struct Transfer {
    size: u64,
    block_size: u64,
    window: u64,
    timeout: Option<Duration>,
    /// The OACK went out and nothing came back yet.
    negotiating: bool,
    /// The client has confirmed anything.
    answered: bool,
    /// Blocks that the client has.
    acked: u64,
    /// Last block sent.
    sent: u64,
    /// A repeated ACK has already made us hurry here.
    hurried: bool,
    hurry: bool,
    /// Repetitions since the last progress.
    silent_for: u32,
    /// Blocks sent more than once.
    repeated: u64,
}

impl Transfer {
    /// A transfer of `size` bytes with granted options, and its first step.
    #[must_use]
    pub fn new(size: u64, options: &Options) -> (Self, Step) {
        let mut transfer = Self {
            size,
            block_size: u64::from(options.blksize.unwrap_or(DEFAULT_BLOCK)),
            window: u64::from(options.windowsize.unwrap_or(1)),
            timeout: options.timeout.map(|s| Duration::from_secs(s.into())),
            negotiating: *options != Options::default(),
            answered: false,
            acked: 0,
            sent: 0,
            hurried: false,
            hurry: false,
            silent_for: 0,
            repeated: 0,
        };
        let step = if transfer.negotiating {
            Step::SendOack
        } else {
            transfer.send_window()
        };
        (transfer, step)
    }

    /// The client has `block` and everything before it.
    pub fn ack(&mut self, block: u16) -> Step {
        if self.negotiating {
            if block != 0 {
                return Step::Wait;
            }
            self.negotiating = false;
            self.answered = true;
            self.silent_for = 0;
            return self.send_window();
        }
        // How far the client got, as the difference to what it had: that survives wrapping,
        // because a window is far shorter than 65536 blocks.
        #[expect(
            clippy::cast_possible_truncation,
            reason = "block numbers wrap (RFC 1350)"
        )]
        let advance = u64::from(block.wrapping_sub(self.acked as u16));
        if advance > self.sent - self.acked {
            // Older than what we know, or never sent.
            return Step::Wait;
        }
        if advance == 0 {
            return self.repeated_ack();
        }
        self.acked += advance;
        self.answered = true;
        self.silent_for = 0;
        if self.acked == self.last_block() {
            return Step::End(End::Complete);
        }
        // Stopped within the window: a block was lost, and every later block of the window makes
        // the client repeat this ACK. One resend answers them all.
        self.hurried = self.acked < self.sent;
        self.hurry = false;
        self.send_window()
    }

    /// The client gives up.
    pub fn client_error(&mut self) -> Step {
        Step::End(if self.acked == 0 {
            End::Probe
        } else {
            End::Aborted
        })
    }

    /// The client repeats its request, because our first answer was late or lost.
    pub fn asked_again(&mut self) -> Step {
        match (self.negotiating, self.answered) {
            (true, _) => Step::SendOack,
            (false, false) => self.send_window(),
            (false, true) => Step::Wait,
        }
    }

    /// Nothing came for [`Transfer::patience`].
    pub fn timed_out(&mut self) -> Step {
        if self.hurry {
            self.hurry = false;
            return self.send_window();
        }
        if self.silent_for >= REPETITIONS {
            // Many ROMs start what they loaded without confirming the last block.
            let only_last_ack_missing = self.acked > 0 && self.sent == self.last_block();
            return Step::End(if only_last_ack_missing {
                End::Complete
            } else {
                End::Silent
            });
        }
        self.silent_for += 1;
        self.hurried = false;
        if self.negotiating {
            Step::SendOack
        } else {
            self.send_window()
        }
    }

    /// How long to wait for an answer to what was sent last.
    #[must_use]
    pub fn patience(&self) -> Duration {
        if self.hurry {
            return HURRY;
        }
        self.timeout.unwrap_or_else(|| {
            let doubled = FIRST_TIMEOUT * 2_u32.pow(self.silent_for.min(REPETITIONS));
            doubled.min(LONGEST_TIMEOUT)
        })
    }

    /// Where block `number` lies in the file: offset and length. The last block is shorter than
    /// the others, and empty when the size is a multiple of the block size.
    #[must_use]
    pub fn block(&self, number: u64) -> (u64, usize) {
        let offset = number.saturating_sub(1).saturating_mul(self.block_size);
        let length = self.size.saturating_sub(offset).min(self.block_size);
        // At most 65464.
        (offset, usize::try_from(length).unwrap_or(0))
    }

    /// Bytes that the client is known to have.
    #[must_use]
    pub fn bytes_acked(&self) -> u64 {
        self.acked.saturating_mul(self.block_size).min(self.size)
    }

    /// Blocks that were sent more than once.
    #[must_use]
    pub fn repeated(&self) -> u64 {
        self.repeated
    }

    /// Whether the client has answered yet.
    #[must_use]
    pub fn has_answered(&self) -> bool {
        self.answered
    }

    fn last_block(&self) -> u64 {
        self.size / self.block_size + 1
    }

    /// An ACK for what we already knew. Within a window it can mean that the first block was
    /// lost, or that the network doubled a packet: waiting a moment tells the two apart.
    fn repeated_ack(&mut self) -> Step {
        if self.window == 1 || self.hurried {
            return Step::Wait;
        }
        self.hurried = true;
        self.hurry = true;
        Step::WaitAgain
    }

    fn send_window(&mut self) -> Step {
        let first = self.acked + 1;
        let last = (self.acked + self.window).min(self.last_block());
        self.repeated += (self.sent + 1).saturating_sub(first);
        self.sent = self.sent.max(last);
        Step::SendBlocks { first, last }
    }
}

#[cfg(test)]
#[path = "transfer_tests.rs"]
mod tests;
