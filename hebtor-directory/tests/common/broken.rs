//! A store that fails.

use std::time::SystemTime;

use async_trait::async_trait;
use eebt_proto::{BridgeDescriptor, BridgeLine};
use hebtor_directory::ring::Identity;
use hebtor_directory::store::{
    Counts, Cursor, Noted, Partition, Pool, Put, Record, Result as StoreResult, Store, StoreError, Test,
    Withdrawn,
};

/// A store whose database is out of order.
pub struct Broken;

fn broken<T>() -> StoreResult<T> {
    Err(StoreError { doing: "cannot do anything", source: "it is out of order".into() })
}

#[async_trait]
impl Store for Broken {
    async fn secret(&self) -> StoreResult<[u8; 32]> {
        broken()
    }
    async fn put(&self, _: &BridgeDescriptor, _: Partition, _: SystemTime) -> StoreResult<Put> {
        broken()
    }
    async fn withdraw(&self, _: &Identity, _: SystemTime, _: SystemTime) -> StoreResult<Withdrawn> {
        broken()
    }
    async fn claim_due(&self, _: u32, _: SystemTime, _: SystemTime) -> StoreResult<Vec<Record>> {
        broken()
    }
    async fn hurry(&self, _: &Identity, _: SystemTime, _: SystemTime) -> StoreResult<()> {
        broken()
    }
    async fn note(&self, _: &Identity, _: &Test, _: SystemTime) -> StoreResult<Noted> {
        broken()
    }
    async fn changes(&self, _: Cursor, _: u32) -> StoreResult<Vec<(Cursor, Record)>> {
        broken()
    }
    async fn expire(&self, _: SystemTime) -> StoreResult<u64> {
        broken()
    }
    async fn find(&self, _: &Identity) -> StoreResult<Option<Record>> {
        broken()
    }
    async fn counts(&self, _: SystemTime) -> StoreResult<Counts> {
        broken()
    }
    async fn set_pool(&self, _: &str, _: u32) -> StoreResult<()> {
        broken()
    }
    async fn remove_pool(&self, _: &str) -> StoreResult<bool> {
        broken()
    }
    async fn pools(&self, _: SystemTime) -> StoreResult<Vec<Pool>> {
        broken()
    }
    async fn fill_pool(&self, _: &str, _: SystemTime) -> StoreResult<()> {
        broken()
    }
    async fn pool_lines(&self, _: &str, _: SystemTime) -> StoreResult<Vec<BridgeLine>> {
        broken()
    }
}
