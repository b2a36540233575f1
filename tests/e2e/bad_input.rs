//! Bad input gets a clear error, and nothing dies.

use std::time::Duration;

use anyhow::ensure;
use tests::binary;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::timeout;

use crate::Suite;

pub fn cases(suite: &mut Suite) {
    suite.case("malformed SOCKS and CONNECT requests do no harm", async |lab| {
        let bridge = lab.bridge().run().await?;
        let mut client = lab.client().via(&bridge).set("handshake_timeout", "2s").run().await?;
        let junk: Vec<Vec<u8>> = vec![
            b"".into(),
            b"\x05".into(),
            b"\x05\x00".into(),
            b"\x05\xff".into(),
            b"\x05\x01\x55".into(),
            b"\x05\x01\x00\x05\x01\x00\x09".into(),
            b"\x05\x01\x00\x05\x02\x00\x01\x7f\x00\x00\x01\x00\x50".into(),
            b"\x05\x01\x00\x05\x01\x00\x03\x00\x00\x50".into(),
            b"\x04\x01\x00\x50\x00\x00\x00\x01".into(),
            b"\x04\x09\x00\x50\x01\x02\x03\x04\x00".into(),
            vec![0; 4096],
            vec![0xff; 4096],
            vec![5; 70_000],
            b"GET / HTTP/1.1\r\n\r\n".into(),
            b"CONNECT\r\n\r\n".into(),
            b"CONNECT x HTTP/1.1\r\n\r\n".into(),
            b"CONNECT :0 HTTP/1.1\r\n\r\n".into(),
            b"CONNECT a:99999 HTTP/1.1\r\n\r\n".into(),
            [b"CONNECT ".as_slice(), &[b'a'; 20_000], b":443 HTTP/1.1\r\n\r\n"].concat(),
            b"CONNECT \xff\xfe:443 HTTP/1.1\r\n\r\n".into(),
            b"\x16\x03\x01\x00\x05hello".into(),
        ];
        for bytes in &junk {
            let mut stream = TcpStream::connect(client.proxy).await?;
            let _ = stream.write_all(bytes).await;
            let mut answer = Vec::new();
            let _closed = timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await?;
            ensure!(!answer.starts_with(b"HTTP/1.1 200"), "{bytes:?}");
        }
        let said = async |request: &str| -> anyhow::Result<String> {
            let mut stream = TcpStream::connect(client.proxy).await?;
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok(answer)
        };
        let answer = said("GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\n\r\n").await?;
        ensure!(answer.starts_with("HTTP/1.1 405") && answer.contains("hint:"), "{answer}");
        ensure!(said("CONNECT nonsense HTTP/1.1\r\n\r\n").await?.starts_with("HTTP/1.1 400"));
        ensure!(said("CONNECT localhost:443 HTTP/1.1\r\n\r\n").await?.starts_with("HTTP/1.1 403"));

        ensure!(client.process.is_alive());
        ensure!(!client.process.stderr().contains("panicked"));
        ensure!(client.get(&lab.origins.open().url("/")).await?.status == 200);
        Ok(())
    });

    suite.case("junk at the OR port does an exit bridge no harm", async |lab| {
        let mut bridge = lab.bridge().run().await?;
        let or_port = bridge.or_port()?;
        for bytes in [vec![], vec![0; 10_000], vec![0xff; 10_000], b"\x16\x03\x01\xff\xff".to_vec()] {
            let mut stream = TcpStream::connect(or_port).await?;
            let _ = stream.write_all(&bytes).await;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        ensure!(bridge.process.is_alive() && !bridge.process.stderr().contains("panicked"));
        let client = lab.client().via(&bridge).run().await?;
        ensure!(client.get(&lab.origins.open().url("/")).await?.status == 200);
        Ok(())
    });

    suite.case("bad arguments and files: one line that names the field, and a hint", async |lab| {
        let dir = lab.folder("bad");
        let file = |name: &str, text: &str| {
            let path = dir.join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let bad_key = file("key.toml", "colour = 1\n");
        let bad_type = file("type.toml", "listen = 7\n");
        let no_toml = file("no.toml", "[[[\n");
        let lines = file("lines", "eebt1 circuit address=1.2.3.4:5\n");
        let gone = dir.join("gone.toml").display().to_string();
        let no_store = format!("store=sqlite:{}", file("no.db", &"This is no database. ".repeat(100)));
        let folder = format!("store=sqlite:{}", dir.display());
        let nobody = format!("store=postgresql:///x?host={}", dir.display());
        for (program, args, named, code) in [
            ("eebt-client", vec!["--bridge", "eebt1 circuit address=1.2.3.4"], "address", 2),
            ("eebt-client", vec!["--bridge", "obfs4 1.2.3.4:5"], "version", 2),
            ("eebt-client", vec!["--bridge-file", &lines], "ed25519", 1),
            ("eebt-client", vec!["--bridge-file", &gone], "gone.toml", 1),
            ("eebt-client", vec![], "bridge", 1),
            ("eebt-client", vec!["--rule", "example.com"], "PATTERN", 2),
            ("eebt-client", vec!["--mode", "sometimes"], "--mode", 2),
            ("eebt-client", vec!["--blocker-list", "http://example.com/list"], "--blocker-list", 2),
            ("eebt-client", vec!["--mode", "never", "--listen", "0.0.0.0:1"], "listen", 1),
            ("eebt-client", vec!["--config", &bad_key], "colour", 1),
            ("eebt-bridge", vec!["run", "--config", &bad_key], "colour", 1),
            ("eebt-bridge", vec!["run", "--config", &bad_type], "listen", 1),
            ("eebt-bridge", vec!["run", "--config", &no_toml], "no.toml", 1),
            ("eebt-bridge", vec!["run", "--config", &gone], "gone.toml", 1),
            ("eebt-bridge", vec!["run", "--set", "limits.streams=0"], "limits.streams", 1),
            ("eebt-bridge", vec!["run", "--set", "status=0.0.0.0:80"], "status", 1),
            ("eebt-bridge", vec!["line", "--set", "keys=/nowhere"], "address", 1),
            ("eebt-bridge", vec!["fly"], "fly", 2),
            ("hebtor-directory", vec!["run", "--config", &bad_key], "colour", 1),
            ("hebtor-directory", vec!["run", "--config", &bad_type], "listen", 1),
            ("hebtor-directory", vec!["run", "--config", &no_toml], "no.toml", 1),
            ("hebtor-directory", vec!["run", "--config", &gone], "gone.toml", 1),
            ("hebtor-directory", vec!["run", "--set", "listen"], "--set", 1),
            ("hebtor-directory", vec!["run", "--set", "listen=0.0.0.0:80"], "listen", 1),
            ("hebtor-directory", vec!["run", "--set", "listen=192.0.2.1:x"], "listen", 1),
            ("hebtor-directory", vec!["run", "--set", "store=mysql:x"], "store", 1),
            ("hebtor-directory", vec!["run", "--set", "network=gone.toml"], "gone.toml", 1),
            (
                "hebtor-directory",
                vec!["run", "--set", "tor.path_rules.ipv4_subnet_family_prefix=x"],
                "[tor]",
                1,
            ),
            ("hebtor-directory", vec!["run", "--set", "pid_file=/gone/x"], "pid_file", 1),
            ("hebtor-directory", vec!["run", "--set", "echo.listen=192.0.2.1:80"], "echo.listen", 1),
            ("hebtor-directory", vec!["run", "--set", "tests.every=500000000000years"], "tests.every", 1),
            ("hebtor-directory", vec!["run", "--set", "tests.timeout=1day"], "tests.timeout", 1),
            (
                "hebtor-directory",
                vec!["run", "--set", "hand_out.lease=500000000000years"],
                "hand_out.lease",
                1,
            ),
            ("hebtor-directory", vec!["run", "--set", &no_store], "store: cannot open", 1),
            ("hebtor-directory", vec!["run", "--set", "keys=/dev/null/keys"], "keys", 1),
            ("hebtor-directory", vec!["pool", "ls", "--set", &no_store], "store: cannot open", 1),
            ("hebtor-directory", vec!["pool", "ls", "--set", &folder], "store: cannot open", 1),
            ("hebtor-directory", vec!["pool", "ls", "--set", &nobody], "store: cannot open", 1),
            ("hebtor-directory", vec!["pool", "show", "nobody"], "no pool nobody", 1),
            ("hebtor-directory", vec!["pool", "rm", "nobody"], "no pool nobody", 1),
            ("hebtor-directory", vec!["pool", "set", ""], "NAME", 2),
            ("hebtor-directory", vec!["pool", "set", " "], "NAME", 2),
            ("hebtor-directory", vec!["pool", "set", "a\nb"], "NAME", 2),
            ("hebtor-directory", vec!["pool", "set", "friends", "--size", "many"], "--size", 2),
            ("hebtor-directory", vec!["pool"], "Usage", 2),
            ("hebtor-directory", vec!["fly"], "fly", 2),
        ] {
            let out = Command::new(binary(program)).args(&args).env("HOME", &dir).current_dir(&dir).output();
            let out = timeout(Duration::from_secs(20), out).await??;
            let said = String::from_utf8_lossy(&out.stderr);
            ensure!(out.status.code() == Some(code), "{program} {args:?}: {:?}\n{said}", out.status);
            ensure!(said.contains(named) && !said.contains("panicked"), "{program} {args:?}: {said}");
            let hint = said.lines().any(|line| line.starts_with("hint: "));
            ensure!(code != 1 || hint, "{program} {args:?}: no hint: {said}");
            ensure!(out.stdout.is_empty(), "{program} {args:?} wrote to stdout");
        }
        Ok(())
    });
}
