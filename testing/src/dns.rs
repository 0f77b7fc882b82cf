//! A small name server, which says what the test wants, one answer after the other.

use std::collections::HashMap;
use std::net::{IpAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};

const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;

/// What is known. The last answer to a name is given again and again.
#[derive(Debug, Clone, Default)]
pub struct Names(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    answers: HashMap<String, Vec<Vec<IpAddr>>>,
    asked: Vec<String>,
}

impl Names {
    /// Serves at 127.0.0.1, on the usual port, in a network of the test's own, as long as the test runs.
    ///
    /// # Errors
    /// Those of a socket or a thread.
    pub fn serve() -> anyhow::Result<Self> {
        let this = Self::default();
        let socket = UdpSocket::bind(("127.0.0.1", 53))?;
        let names = this.clone();
        std::thread::Builder::new().spawn(move || {
            let mut question = [0; 512];
            while let Ok((len, from)) = socket.recv_from(&mut question) {
                if let Some(answer) = names.answer(&question[..len]) {
                    drop(socket.send_to(&answer, from));
                }
            }
        })?;
        Ok(this)
    }

    /// From now on, `name` has these answers, in this order.
    ///
    /// # Errors
    /// If one of them is no address.
    pub fn set(&self, name: &str, answers: &[&[&str]]) -> anyhow::Result<()> {
        let list = |answer: &&[&str]| answer.iter().map(|text| text.parse()).collect();
        let answers = answers.iter().map(list).collect::<Result<_, _>>()?;
        self.known().answers.insert(name.to_owned(), answers);
        Ok(())
    }

    /// The names that were asked for, since this was last asked.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.known().asked)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, question: &[u8]) -> Option<Vec<u8>> {
        let (header, mut rest) = question.split_at_checked(12)?;
        let mut labels = Vec::new();
        loop {
            let (len, after) = rest.split_first()?;
            let (label, after) = after.split_at_checked(usize::from(*len))?;
            rest = after;
            if label.is_empty() {
                break;
            }
            labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
        }
        let name = labels.join(".");
        let kind = u16::from_be_bytes([*rest.first()?, *rest.get(1)?]);
        let asked = &question[12..question.len() - rest.len() + 4];
        let mut known = self.known();
        known.asked.push(name.clone());
        let answers = known.answers.get_mut(&name);
        let exists = answers.is_some();
        let all = match answers {
            // The question for version 4 is the one that counts.
            Some(answers) if answers.len() > 1 && kind == TYPE_A => answers.remove(0),
            Some(answers) => answers.first().cloned().unwrap_or_default(),
            None => Vec::new(),
        };
        let records = all.iter().filter_map(|address| match (address, kind) {
            (IpAddr::V4(address), TYPE_A) => Some(address.octets().to_vec()),
            (IpAddr::V6(address), TYPE_AAAA) => Some(address.octets().to_vec()),
            _ => None,
        });
        let records: Vec<Vec<u8>> = records.collect();
        let code: u8 = if exists { 0 } else { 3 };
        let count = u8::try_from(records.len()).ok()?;
        let mut answer = vec![
            header[0],
            header[1],
            0x81,
            0x80 | code,
            0,
            1,
            0,
            count,
            0,
            0,
            0,
            0,
        ];
        answer.extend_from_slice(asked);
        for record in records {
            answer.extend([0xc0, 12]);
            answer.extend(kind.to_be_bytes());
            answer.extend([0, 1, 0, 0, 0, 0]);
            answer.extend(u16::try_from(record.len()).ok()?.to_be_bytes());
            answer.extend(record);
        }
        Some(answer)
    }
}
