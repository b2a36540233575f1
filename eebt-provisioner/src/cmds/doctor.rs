//! `eebt doctor`

use eebt_provisioner::Fleet;
use eebt_provisioner::cloud::Query;
use eebt_provisioner::instance::Provider;
use serde_json::json;

use crate::print::{Hinted, Printer, Usage};

#[derive(clap::Args)]
pub struct Args {
    /// Which cloud
    #[arg(value_enum)]
    provider: Provider,
    /// Where [default: all regions that the account may use are listed]
    #[arg(long, value_name = "REGION", value_delimiter = ',')]
    region: Vec<String>,
    /// Processors that the program was built for
    #[arg(long, default_value = "x86_64", value_parser = ["x86_64", "arm64"])]
    arch: String,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

impl Args {
    pub fn run(self, fleet: &Fleet, printer: &Printer) -> anyhow::Result<()> {
        if self.provider == Provider::Local {
            return Err(
                Usage::new("PROVIDER: local is no cloud", "`eebt help doctor` lists the clouds").into()
            );
        }
        printer.progress("asking ...");
        let cloud = fleet.cloud(self.provider)?;
        let known = cloud.regions()?;
        printer.wipe();
        if !self.json {
            printer.data(&format!("ok    credentials, and {} regions: {}", known.len(), known.join(", ")))?;
        }
        let query = Query { kinds: Vec::new(), arch: self.arch.clone(), image: None, on_demand: None };
        let (mut wrong, mut all, mut hint) = (0, Vec::new(), None);
        for region in &self.region {
            if !known.contains(region) {
                return Err(Usage::new(
                    format!("--region: {region} is none of this account's"),
                    "leave it out to list them",
                )
                .into());
            }
            for finding in cloud.examine(region, &query) {
                let what = finding.what;
                let (is_ok, said) = match &finding.result {
                    Ok(said) => (true, said.clone()),
                    Err(error) => (false, error.to_string()),
                };
                let its_hint = finding.result.err().and_then(|error| error.hint);
                all.push(
                    json!({ "region": region, "what": what, "ok": is_ok, "said": said, "hint": its_hint }),
                );
                if !self.json {
                    printer.data(&format!(
                        "{:5} {region}: {what}: {said}",
                        if is_ok { "ok" } else { "WRONG" }
                    ))?;
                }
                if !is_ok {
                    wrong += 1;
                    hint = hint.or(its_hint);
                }
            }
        }
        if self.json {
            printer.json(&json!({ "regions": known, "findings": all }))?;
        }
        if wrong == 0 {
            return Ok(());
        }
        Err(Hinted { message: format!("{wrong} things are wrong"), hint }.into())
    }
}
