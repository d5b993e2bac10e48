//! Server-sent events: from bytes to messages (WHATWG HTML, section 9.2). Pure.

/// One message of the stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Message {
    /// Its id, if it has one: where to resume.
    pub id: Option<String>,
    /// Its data, lines joined.
    pub data: String,
}

/// Longest message that is accepted; a longer one is not from our daemon.
const LIMIT: usize = 1 << 20;

/// Takes bytes as they arrive.
#[derive(Debug, Default)]
pub struct Parser {
    line: Vec<u8>,
    message: Message,
}

impl Parser {
    /// The messages that these bytes complete.
    ///
    /// # Errors
    /// When a message is longer than 1 MiB.
    pub fn feed(&mut self, bytes: &[u8]) -> anyhow::Result<Vec<Message>> {
        let mut messages = Vec::new();
        for byte in bytes {
            match byte {
                b'\n' => {
                    let line = String::from_utf8_lossy(&self.line).into_owned();
                    self.line.clear();
                    messages.extend(self.take(line.trim_end_matches('\r')));
                }
                byte => self.line.push(*byte),
            }
            if self.line.len() + self.message.data.len() > LIMIT {
                anyhow::bail!("a message of the event stream is longer than 1 MiB");
            }
        }
        Ok(messages)
    }

    /// Takes one line; an empty one completes a message.
    fn take(&mut self, line: &str) -> Option<Message> {
        if line.is_empty() {
            let message = std::mem::take(&mut self.message);
            return (!message.data.is_empty()).then_some(message);
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => self.message.id = Some(value.to_owned()),
            "data" => {
                if !self.message.data.is_empty() {
                    self.message.data.push('\n');
                }
                self.message.data.push_str(value);
            }
            // Comments keep the connection open; `event` repeats what the data says.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_messages_however_they_are_cut() {
        let stream = b": hello\n\nid: 7\nevent: x\ndata: {\"a\":\ndata: 1}\r\n\r\ndata:two\n\n";
        for size in 1..stream.len() {
            let mut parser = Parser::default();
            let mut messages = Vec::new();
            for part in stream.chunks(size) {
                messages.extend(parser.feed(part).unwrap());
            }
            assert_eq!(messages.len(), 2, "in parts of {size}");
            assert_eq!(messages[0].id.as_deref(), Some("7"));
            assert_eq!(messages[0].data, "{\"a\":\n1}");
            assert_eq!(messages[1].data, "two");
        }
    }

    #[test]
    fn stops_at_an_endless_message() {
        let mut parser = Parser::default();
        let part = vec![b'x'; 1 << 18];
        assert!((0..8).any(|_| parser.feed(&part).is_err()));
    }
}
