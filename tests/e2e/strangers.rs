//! Who is no Tor relay gets no stream: an exit bridge is nobody's open proxy.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use arti_client::TorClient;
use eebt_bridge::BridgeKeys;
use eebt_bridge::consensus::Consensus;
use eebt_bridge::ingress::circuit::CircuitIngress;
use eebt_bridge::limits::Limits;
use eebt_proto::{BridgeLine, PortSet};
use eebt_tor::TorRuntime;
use tests::Lab;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio::time::timeout;
use tor_chanmgr::ChannelUsage;
use tor_circmgr::ClientDataTunnel;
use tor_circmgr::build::exit_circparams_from_netparams;
use tor_circmgr::path::TorPath;
use tor_linkspec::OwnedChanTarget;
use tor_netdir::params::NetParameters;
use tor_proto::ClientTunnel;
use tor_proto::client::circuit::{CircParameters, TimeoutEstimator};

use crate::Suite;

pub fn cases(suite: &mut Suite) {
    suite.case("a scanner that is no relay finds nothing, not even TLS", async |lab| {
        let bridge = lab.bridge().run().await?;
        let addr = bridge.or_port()?;
        for hello in [&b""[..], b"GET / HTTP/1.0\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"] {
            let socket = TcpSocket::new_v4()?;
            socket.bind(SocketAddr::new(lab.net.spare_ip(), 0))?;
            let mut stream = match socket.connect(addr).await {
                Ok(stream) => stream,
                Err(_) => continue,
            };
            let _ = stream.write_all(hello).await;
            let mut got = Vec::new();
            let _reset =
                timeout(Duration::from_secs(5), stream.read_to_end(&mut got)).await.context("kept open")?;
            ensure!(got.is_empty(), "it answered {got:?}");
        }
        Ok(())
    });

    suite.case("a TLS client from a relay's address gets no answer", async |lab| {
        let mut limits = toml::Table::new();
        limits.insert("handshake_timeout".into(), "2s".into());
        let bridge = lab.bridge().set("limits", limits).run().await?;
        let addr = bridge.or_port()?;
        let out = tokio::process::Command::new("curl")
            .args(["-sSk", "--max-time", "20", "-w", "%{http_code}", &format!("https://{addr}/")])
            .output()
            .await?;
        ensure!(String::from_utf8_lossy(&out.stdout) == "000", "{out:?}");
        ensure!(out.status.code() != Some(28), "the connection was kept open: {out:?}");
        Ok(())
    });

    suite.case("CREATE_FAST and BEGIN from a stranger get no stream", async |lab| {
        let bridge = lab.bridge().run().await?;
        let stranger = Stranger::start(lab).await?;
        let target = chan_target(&bridge.line)?;
        let path = TorPath::new_one_hop_owned(&target);
        let built = stranger
            .tor
            .circmgr()?
            .builder()
            .build(&path, &stranger.params()?, ChannelUsage::UserTraffic)
            .await;
        // The circuit may come up before the channel is closed; a stream may not.
        if let Ok(tunnel) = built {
            no_stream(lab, tunnel).await?;
        }
        refused_by_identity(lab, &bridge).await
    });

    suite.case("relay keys that a stranger made himself get no stream", async |lab| {
        let bridge = lab.bridge().run().await?;
        let stranger = Stranger::start(lab).await?;
        let keys = Arc::new(BridgeKeys::generate(&lab.folder("stranger").join("keys"))?);
        // He is a relay by all that a relay needs, but for a place in the consensus.
        let consensus = Consensus::new(stranger.tor.dirmgr()?, Vec::new(), Vec::new());
        let relay = CircuitIngress::new(
            stranger.tor.runtime(),
            &keys,
            ([127, 0, 0, 1], 9001).into(),
            &PortSet::web(),
            &Limits::default(),
            Arc::new(consensus),
            &NetParameters::default(),
        )?;
        let (channel, _) =
            relay.chanmgr().get_or_launch(&chan_target(&bridge.line)?, ChannelUsage::UserTraffic).await?;
        if let Ok((pending, reactor)) = channel.new_tunnel(Arc::new(Patient)).await {
            tokio::spawn(async move { reactor.run().await });
            if let Ok(tunnel) = pending.create_firsthop_fast(stranger.params()?).await {
                no_stream(lab, tunnel).await?;
            }
        }
        refused_by_identity(lab, &bridge).await
    });

    suite.case("a circuit is not extended any further", async |lab| {
        let bridge = lab.bridge().run().await?;
        let client = Stranger::start(lab).await?;
        let netdir = client.tor.dirmgr()?.timely_netdir()?;
        let relays: Vec<_> = netdir.relays().collect();
        let path = TorPath::new_multihop([relays[0].clone(), relays[1].clone()]);
        let params = client.params()?;
        let tunnel = client.tor.circmgr()?.builder().build(&path, &params, ChannelUsage::UserTraffic).await?;
        let circuit = tunnel.as_single_circ()?;
        circuit
            .extend(&circ_target(&bridge.line)?, params.clone())
            .await
            .context("as last hop it is fine")?;
        let further = timeout(Duration::from_secs(30), circuit.extend(&relays[2], params)).await;
        ensure!(!matches!(further, Ok(Ok(()))), "it served as a middle");
        Ok(())
    });
}

/// The runtime of all strangers. Made outside of any other runtime, and never dropped: neither can be
/// done inside of one.
pub fn arti_runtime() -> TorRuntime {
    static RUNTIME: std::sync::OnceLock<(tokio::runtime::Runtime, TorRuntime)> = std::sync::OnceLock::new();
    RUNTIME.get_or_init(|| eebt_tor::create_runtime(2).expect("runtime")).1.clone()
}

/// Somebody with Arti on the private network.
struct Stranger {
    tor: Arc<TorClient<TorRuntime>>,
}

impl Stranger {
    async fn start(lab: &Lab) -> anyhow::Result<Self> {
        let none = toml::Table::new();
        let config =
            eebt_tor::tor_client_config(&lab.folder("stranger"), Some(lab.net.network_file()), &none)?;
        let runtime = arti_runtime();
        let tor = TorClient::with_runtime(runtime).config(config);
        let tor = tor.create_unbootstrapped_async().await?;
        tor.bootstrap().await?;
        Ok(Self { tor })
    }

    fn params(&self) -> anyhow::Result<CircParameters> {
        Ok(exit_circparams_from_netparams(self.tor.dirmgr()?.timely_netdir()?.params())?)
    }
}

/// Asks for a stream to an origin, and expects none.
async fn no_stream(lab: &Lab, tunnel: ClientTunnel) -> anyhow::Result<()> {
    let origin = lab.origins.open();
    let (ip, port) = (origin.addr().ip().to_string(), origin.addr().port());
    let tunnel = ClientDataTunnel::from(tunnel);
    let begun = timeout(Duration::from_secs(10), tunnel.begin_stream(&ip, port, None)).await;
    ensure!(!matches!(begun, Ok(Ok(_))), "a stranger got a stream");
    Ok(())
}

/// The exit bridge knew what it did, and no origin was asked.
async fn refused_by_identity(lab: &Lab, bridge: &tests::Bridge) -> anyhow::Result<()> {
    tokio::time::sleep(Duration::from_millis(300)).await;
    let log = bridge.process.stderr();
    ensure!(log.contains("its peer is no relay of the current consensus"), "{log}");
    ensure!(
        lab.origins.all().iter().all(|o| o.hits().iter().all(|h| h.peer_ip != bridge.ip)),
        "an origin was asked"
    );
    Ok(())
}

fn chan_target(line: &BridgeLine) -> anyhow::Result<OwnedChanTarget> {
    let reach = tests::circuit_reach(line)?;
    // No `addrs`: Arti as a relay would refuse to connect to loopback ones. A stranger knows ways.
    Ok(OwnedChanTarget::builder()
        .ed_identity(reach.ed25519.into())
        .rsa_identity(reach.rsa.into())
        .method(tor_linkspec::ChannelMethod::Direct(reach.addresses.clone()))
        .build()?)
}

fn circ_target(line: &BridgeLine) -> anyhow::Result<tor_linkspec::OwnedCircTarget> {
    let reach = tests::circuit_reach(line)?;
    let mut builder = tor_linkspec::OwnedCircTarget::builder();
    builder
        .chan_target()
        .addrs(reach.addresses.clone())
        .ed_identity(reach.ed25519.into())
        .rsa_identity(reach.rsa.into());
    Ok(builder.ntor_onion_key(reach.ntor.into()).protocols(reach.protocols.parse()?).build()?)
}

/// Waits as long as it takes.
struct Patient;

impl TimeoutEstimator for Patient {
    fn circuit_build_timeout(&self, _length: usize) -> Duration {
        Duration::from_secs(30)
    }
}
