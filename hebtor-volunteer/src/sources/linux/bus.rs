//! D-Bus: a connection whose calls end in time.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Runtime;
use zbus::connection::Builder;
use zbus::proxy::{self, CacheProperties, MethodFlags};
use zbus::zvariant::{DynamicType, OwnedValue, Type};
use zbus::{Connection, Proxy};

use super::reopen::Broken;

/// Time that opening a connection or one call may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Which bus.
#[derive(Clone, Debug)]
pub enum Address {
    /// The one of the person who is logged in.
    Session,
    /// The one of the machine.
    System,
    /// The one at this D-Bus address: `unix:path=/tmp/bus`.
    At(String),
}

/// A connection to a bus. Its runtime runs only while we wait for an answer, so that it costs nothing else.
pub(super) struct Bus {
    connection: Connection,
    runtime: Runtime,
}

/// Whom to ask: a service, one of its objects, and an interface of it.
#[derive(Clone, Copy)]
pub(super) struct Object<'a> {
    pub(super) service: &'a str,
    pub(super) path: &'a str,
    pub(super) interface: &'a str,
}

impl Bus {
    pub(super) fn open(address: &Address) -> Result<Self, Broken> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let builder = match address {
            Address::Session => Builder::session()?,
            Address::System => Builder::system()?,
            Address::At(address) => Builder::address(address.as_str())?,
        };
        let connection = runtime.block_on(in_time(builder.build()))?;
        Ok(Self { connection, runtime })
    }

    /// Calls a method. A service that does not run is not started for it.
    pub(super) fn call<R>(
        &self,
        object: Object<'_>,
        method: &str,
        body: &(impl Serialize + DynamicType),
    ) -> Result<R, Broken>
    where
        R: DeserializeOwned + Type,
    {
        let answer = async {
            let proxy = proxy::Builder::<Proxy<'_>>::new(&self.connection)
                .destination(object.service)?
                .path(object.path)?
                .interface(object.interface)?
                .cache_properties(CacheProperties::No)
                .build()
                .await?;
            let answer = proxy.call_with_flags(method, MethodFlags::NoAutoStart.into(), body).await?;
            answer.ok_or(zbus::Error::InvalidReply)
        };
        self.runtime.block_on(in_time(answer))
    }

    /// All properties of an interface.
    pub(super) fn properties(&self, object: Object<'_>) -> Result<Properties, Broken> {
        let interface = "org.freedesktop.DBus.Properties";
        self.call(Object { interface, ..object }, "GetAll", &object.interface).map(Properties)
    }
}

/// Properties by name.
pub(super) struct Properties(HashMap<String, OwnedValue>);

impl Properties {
    /// Takes one, if it is there and of that type.
    pub(super) fn take<T: TryFrom<OwnedValue>>(&mut self, name: &str) -> Option<T> {
        self.0.remove(name)?.try_into().ok()
    }
}

async fn in_time<T>(work: impl Future<Output = zbus::Result<T>>) -> Result<T, Broken> {
    Ok(tokio::time::timeout(PATIENCE, work).await??)
}
