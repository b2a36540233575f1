//! SOCKS4, 4a and 5 by Arti's own implementation, with Tor's extensions: credentials isolate,
//! RESOLVE and RESOLVE_PTR (socks-extensions).

use std::net::IpAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tor_socksproto::{
    Buffer, Handshake as _, NextStep, SocksAddr, SocksAuth, SocksCmd, SocksProxyHandshake, SocksRequest,
    SocksStatus, SocksVersion,
};

use super::{Ask, RequestError};
use crate::connect::{ConnectError, Protocol, TargetFailure};

/// A request, and what the program sent right behind it.
pub(super) struct Request {
    socks: SocksRequest,
    pub(super) early_data: Vec<u8>,
}

/// Speaks SOCKS until the request is known.
pub(super) async fn read_request(tcp: &mut TcpStream) -> Result<Request, RequestError> {
    let mut handshake = SocksProxyHandshake::new();
    let mut buffer = Buffer::new();
    loop {
        match handshake.step(&mut buffer).map_err(|_| RequestError::Malformed)? {
            NextStep::Send(bytes) => tcp.write_all(&bytes).await.map_err(RequestError::Io)?,
            NextStep::Recv(mut receive) => {
                let n = tcp.read(receive.buf()).await.map_err(RequestError::Io)?;
                receive.note_received(n).map_err(|_| RequestError::Malformed)?;
            }
            NextStep::Finished(finished) => {
                let (socks, early_data) = finished.into_output_and_vec();
                return Ok(Request { socks, early_data });
            }
        }
    }
}

impl Request {
    pub(super) fn protocol(&self) -> Protocol {
        match self.socks.version() {
            SocksVersion::V4 => Protocol::Socks4,
            _ => Protocol::Socks5,
        }
    }

    /// What isolates: user name and password, or the user id of SOCKS4. Lengths keep the two apart.
    pub(super) fn credentials(&self) -> Vec<u8> {
        match self.socks.auth() {
            SocksAuth::Username(user, password) => {
                let length = u8::try_from(user.len()).unwrap_or(u8::MAX);
                [&[5, length], user.as_slice(), password].concat()
            }
            // Without a user id there are no credentials.
            SocksAuth::Socks4(user) if !user.is_empty() => [&[4], user.as_slice()].concat(),
            _ => Vec::new(),
        }
    }

    pub(super) fn ask(&self) -> Result<Ask, RequestError> {
        let host = self.socks.addr().to_string();
        match (self.socks.command(), self.socks.addr()) {
            (SocksCmd::CONNECT, _) => Ok(Ask::Connect(host, self.socks.port())),
            (SocksCmd::RESOLVE, _) => Ok(Ask::Resolve(host)),
            (SocksCmd::RESOLVE_PTR, SocksAddr::Ip(ip)) => Ok(Ask::ResolvePtr(*ip)),
            (SocksCmd::RESOLVE_PTR, SocksAddr::Hostname(name)) => {
                name.as_ref().parse().map(Ask::ResolvePtr).map_err(|_| RequestError::Malformed)
            }
            _ => Err(RequestError::Unsupported("SOCKS command that is not CONNECT, RESOLVE or RESOLVE_PTR")),
        }
    }

    /// The reply to a command that is not for us.
    pub(super) fn decline(&self) -> Vec<u8> {
        self.socks.reply(SocksStatus::COMMAND_NOT_SUPPORTED, None).unwrap_or_default()
    }

    /// The reply; empty if it can't be encoded, which closes the connection.
    pub(super) fn reply(&self, outcome: Result<Option<SocksAddr>, &ConnectError>) -> Vec<u8> {
        let (status, addr) = match outcome {
            Ok(addr) => (SocksStatus::SUCCEEDED, addr),
            Err(error) => (status(error), None),
        };
        self.socks.reply(status, addr.as_ref()).unwrap_or_default()
    }
}

pub(super) fn first_address(ips: &[IpAddr]) -> Option<SocksAddr> {
    ips.first().map(|ip| SocksAddr::Ip(*ip))
}

pub(super) fn first_name(names: &[String]) -> Option<SocksAddr> {
    names.first().and_then(|name| name.clone().try_into().ok()).map(SocksAddr::Hostname)
}

/// RFC 1928, section 6.
fn status(error: &ConnectError) -> SocksStatus {
    match error {
        ConnectError::Target(TargetFailure::Refused) => SocksStatus::CONNECTION_REFUSED,
        ConnectError::Target(TargetFailure::Unreachable) => SocksStatus::HOST_UNREACHABLE,
        ConnectError::Target(TargetFailure::TimedOut) | ConnectError::Timeout => SocksStatus::TTL_EXPIRED,
        ConnectError::Target(TargetFailure::Forbidden) | ConnectError::BadTarget => SocksStatus::NOT_ALLOWED,
        ConnectError::NoExitBridge | ConnectError::ExitBridges(_) => SocksStatus::NETWORK_UNREACHABLE,
        ConnectError::Target(TargetFailure::Other) | ConnectError::Tor(_) | ConnectError::NoLookUp => {
            SocksStatus::GENERAL_FAILURE
        }
    }
}
