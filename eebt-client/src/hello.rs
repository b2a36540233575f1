//! What a program says first in TLS.

/// Whether the program that begins a TLS handshake so wants to speak HTTP (ALPN, RFC 7301): not mail, say.
pub(crate) fn offers_http(mut client_hello: &[u8]) -> bool {
    let mut acceptor = rustls::server::Acceptor::default();
    while !client_hello.is_empty() && acceptor.read_tls(&mut client_hello).is_ok_and(|read| read > 0) {
        if let Ok(Some(accepted)) = acceptor.accept() {
            let hello = accepted.client_hello();
            let mut offered = hello.alpn().into_iter().flatten();
            return offered.any(|protocol| protocol == b"h2" || protocol == b"http/1.1");
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, RootCertStore};
    use std::sync::Arc;

    /// What a program says first that offers these protocols.
    fn client_hello(protocols: &[&str]) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let mut config = config.unwrap().with_root_certificates(RootCertStore::empty()).with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        let name = ServerName::try_from("mail.example").unwrap();
        let mut hello = Vec::new();
        let mut tls = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        tls.write_tls(&mut hello).unwrap();
        hello
    }

    #[test]
    fn programs_that_want_no_http_are_known() {
        for (protocols, http) in [
            (&["h2", "http/1.1"][..], true),
            (&["http/1.1"], true),
            (&["imap"], false),
            (&["http/1.0"], false),
            (&[], false),
        ] {
            assert_eq!(offers_http(&client_hello(protocols)), http, "{protocols:?}");
        }
        let hello = client_hello(&["h2"]);
        for cut in [0, 1, 5, 60, hello.len() - 1] {
            assert!(!offers_http(&hello[..cut]), "{cut} bytes");
        }
        assert!(!offers_http(b"GET / HTTP/1.1\r\n\r\n"));
        assert!(!offers_http(&[22, 3, 1, 0xFF, 0xFF, 1, 0xFF, 0xFF, 0xFF]));
    }
}
