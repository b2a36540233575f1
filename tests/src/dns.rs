//! A name server for exit bridges under test: it knows what it is told, and counts.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::{RData, Record, RecordType, rdata};
use tokio::net::UdpSocket;

/// Answers of one name, one after the other; the last one stays.
type Answers = Vec<Vec<IpAddr>>;

/// A running name server.
pub struct Dns {
    addr: SocketAddr,
    names: Arc<Mutex<HashMap<String, (Answers, usize)>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Dns {
    /// Starts one on `ip`.
    pub async fn start(ip: IpAddr) -> anyhow::Result<Self> {
        let socket = UdpSocket::bind((ip, 0)).await?;
        let addr = socket.local_addr()?;
        let names: Arc<Mutex<HashMap<String, (Answers, usize)>>> = Arc::default();
        let known = Arc::clone(&names);
        let task = tokio::spawn(async move {
            let mut buffer = [0; 2048];
            while let Ok((n, from)) = socket.recv_from(&mut buffer).await {
                if let Some(reply) = reply(&buffer[..n], &known) {
                    let _ = socket.send_to(&reply, from).await;
                }
            }
        });
        Ok(Self { addr, names, task })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `name` has these addresses.
    pub fn set(&self, name: &str, ips: &[&str]) {
        self.set_changing(name, &[ips]);
    }

    /// `name` has the first addresses at the first look-up, the second ones at the second, and the
    /// last ones from then on.
    pub fn set_changing(&self, name: &str, answers: &[&[&str]]) {
        let answers = answers.iter().map(|ips| ips.iter().map(|ip| ip.parse().unwrap()).collect()).collect();
        self.names.lock().unwrap().insert(format!("{name}."), (answers, 0));
    }

    /// How often the IPv4 addresses of `name` were asked for.
    pub fn asked(&self, name: &str) -> usize {
        self.names.lock().unwrap().get(&format!("{name}.")).map_or(0, |(_, asked)| *asked)
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn reply(bytes: &[u8], known: &Mutex<HashMap<String, (Answers, usize)>>) -> Option<Vec<u8>> {
    let query = Message::from_vec(bytes).ok()?;
    let question = query.queries.first()?.clone();
    let name = question.name().to_ascii().to_lowercase();
    let mut message = Message::response(query.metadata.id, query.metadata.op_code);
    message.metadata.message_type = MessageType::Response;
    message.metadata.recursion_available = true;
    message.add_query(question.clone());
    let mut known = known.lock().unwrap();
    match known.get_mut(&name) {
        None => message.metadata.response_code = ResponseCode::NXDomain,
        Some((answers, asked)) => {
            let now = answers.get(*asked).or_else(|| answers.last()).cloned().unwrap_or_default();
            // Both families of one look-up see the same answer; the count goes by the IPv4 one.
            if question.query_type() == RecordType::A {
                *asked += 1;
            }
            for ip in now {
                let data = match (ip, question.query_type()) {
                    (IpAddr::V4(ip), RecordType::A) => RData::A(rdata::A(ip)),
                    (IpAddr::V6(ip), RecordType::AAAA) => RData::AAAA(rdata::AAAA(ip)),
                    _ => continue,
                };
                message.add_answer(Record::from_rdata(question.name().clone(), 1, data));
            }
        }
    }
    message.to_vec().ok()
}
