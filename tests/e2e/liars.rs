//! Exit bridges that take circuits and serve badly: the person goes on with another one.

use std::net::IpAddr;

use anyhow::ensure;
use tests::{Client, Lab};
use tokio_socks::tcp::Socks5Stream;

use crate::Suite;

/// How many fetches may fail until the client has found out.
const MAY_FAIL: usize = 4;

pub fn cases(suite: &mut Suite) {
    suite.case("an exit bridge that refuses streams for reasons of its own is left alone", async |lab| {
        let mut limits = toml::Table::new();
        limits.insert("streams".into(), 1.into());
        let full = lab.bridge().set("limits", limits).run().await?;
        // Somebody is there already, and stays.
        let guest = lab.client().via(&full).set("optimistic", false).run().await?;
        let _stays = Socks5Stream::connect(guest.proxy, lab.origins.open().addr()).await?;
        let honest = lab.bridge().run().await?;
        for optimistic in [true, false] {
            let client = lab.client().via(&full).via(&honest).set("optimistic", optimistic).run().await?;
            goes_on(lab, &client, honest.ip).await?;
        }
        Ok(())
    });
}

/// Whoever comes, all of them, and again and again, is served by the honest one after a few failures.
async fn goes_on(lab: &Lab, client: &Client, honest: IpAddr) -> anyhow::Result<()> {
    let url = lab.origins.open().url("/peer");
    let mut pages = Vec::new();
    for _ in 0..3 {
        for user in ["a", "b", "c", "d", "e", "f"] {
            pages.push(client.get_as(user, &url).await?);
        }
    }
    let served = |page: &&tests::Fetched| page.status == 200;
    let failed = pages.len() - pages.iter().filter(served).count();
    ensure!(failed <= MAY_FAIL, "{failed} fetches failed: {pages:?}");
    let last = &pages[pages.len() / 2..];
    ensure!(last.iter().all(|page| page.text == honest.to_string()), "{last:?}");
    Ok(())
}
