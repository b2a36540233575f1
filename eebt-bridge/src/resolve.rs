//! Names to addresses. Nothing is cached here: the name server does that, and a cache of ours would
//! tell one client by its speed what another one visited.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;

/// Looks names up.
pub struct Resolver(TokioResolver);

/// Why a name has no address. Carries no name.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The resolver can't be set up.
    #[error("cannot set up the resolver: {0}")]
    Setup(String),
    /// No such name, or no address.
    #[error("the name does not resolve")]
    NotFound,
    /// No answer in time; trying again may help.
    #[error("the name servers do not answer")]
    Transient,
}

impl Resolver {
    /// A resolver that asks `servers`, or the system's when there are none. No search list, no hosts
    /// file: every name is an absolute one.
    ///
    /// # Errors
    /// [`ResolveError::Setup`].
    pub fn new(servers: &[SocketAddr]) -> Result<Self, ResolveError> {
        let setup = |e: hickory_resolver::net::NetError| ResolveError::Setup(e.to_string());
        let mut builder = if servers.is_empty() {
            TokioResolver::builder_tokio().map_err(setup)?
        } else {
            let servers = servers
                .iter()
                .map(|addr| {
                    let on_port = |mut c: ConnectionConfig| {
                        c.port = addr.port();
                        c
                    };
                    let both = vec![on_port(ConnectionConfig::udp()), on_port(ConnectionConfig::tcp())];
                    NameServerConfig::new(addr.ip(), true, both)
                })
                .collect();
            let config = ResolverConfig::from_name_servers(servers);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        };
        let options = builder.options_mut();
        options.cache_size = 0;
        options.use_hosts_file = ResolveHosts::Never;
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        options.timeout = Duration::from_secs(3);
        options.attempts = 2;
        builder.build().map(Self).map_err(setup)
    }

    /// All addresses of `name` (without final dot), in the order of the answer.
    ///
    /// # Errors
    /// [`ResolveError::NotFound`] or [`ResolveError::Transient`].
    pub async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, ResolveError> {
        let answer = self.0.lookup_ip(format!("{name}.")).await.map_err(kind)?;
        let addresses: Vec<IpAddr> = answer.iter().map(|ip| ip.to_canonical()).collect();
        if addresses.is_empty() { Err(ResolveError::NotFound) } else { Ok(addresses) }
    }

    /// The name of an address.
    ///
    /// # Errors
    /// [`ResolveError::NotFound`] or [`ResolveError::Transient`].
    pub async fn name_of(&self, ip: IpAddr) -> Result<String, ResolveError> {
        let answer = self.0.reverse_lookup(ip).await.map_err(kind)?;
        let name = answer.answers().iter().find_map(|record| match &record.data {
            hickory_resolver::proto::rr::RData::PTR(name) => Some(name.0.to_ascii()),
            _ => None,
        });
        // Whoever owns the address chose the name: it must be one, and fit into a cell.
        match name.as_deref().map(str::parse) {
            Some(Ok(eebt_proto::Host::Name(name))) => Ok(name),
            _ => Err(ResolveError::NotFound),
        }
    }
}

fn kind(error: hickory_resolver::net::NetError) -> ResolveError {
    if error.is_no_records_found() || error.is_nx_domain() {
        ResolveError::NotFound
    } else {
        ResolveError::Transient
    }
}
