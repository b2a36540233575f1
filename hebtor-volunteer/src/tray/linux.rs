//! StatusNotifierItem, over D-Bus.

use ksni::menu::StandardItem;
use ksni::{Icon, MenuItem, ToolTip, TrayMethods as _};

use super::{Act, LOOK, Owner, SIDE, Shown, TITLE, disc};

/// What shows it. D-Bus needs no thread of its own.
pub struct Tray(());

/// Runs `app`, which may show a tray.
pub fn on_this_thread<T>(app: impl FnOnce(Tray) -> T) -> T {
    app(Tray(()))
}

impl Tray {
    /// Shows it, as long as the app runs. Never returns.
    pub async fn run(self, owner: Owner) {
        let app = owner.app.clone();
        let mut shown = Shown::of(&app);
        let item = Item { owner, shown: shown.clone() };
        // The panel may start later than we do.
        let handle = match item.assume_sni_available(true).spawn().await {
            Ok(handle) => handle,
            Err(error) => {
                tracing::info!(%error, "no tray");
                return std::future::pending().await;
            }
        };
        loop {
            tokio::time::sleep(LOOK).await;
            let now = Shown::of(&app);
            if now != shown {
                shown = now.clone();
                handle.update(|item| item.shown = now).await;
            }
        }
    }
}

struct Item {
    owner: Owner,
    shown: Shown,
}

impl ksni::Tray for Item {
    fn id(&self) -> String {
        "hebtor-volunteer".into()
    }

    fn title(&self) -> String {
        TITLE.into()
    }

    fn tool_tip(&self) -> ToolTip {
        ToolTip { title: self.title(), description: self.shown.text.clone(), ..ToolTip::default() }
    }

    fn icon_pixmap(&self) -> Vec<Icon> {
        // Alpha first.
        let data = disc(self.shown.colour).flat_map(|[red, green, blue, alpha]| [alpha, red, green, blue]);
        let side = i32::try_from(SIDE).unwrap_or_default();
        vec![Icon { width: side, height: side, data: data.collect() }]
    }

    fn activate(&mut self, _x: i32, _y: i32) {
        self.owner.act(Act::Open);
    }

    fn menu(&self) -> Vec<MenuItem<Self>> {
        let state =
            StandardItem { label: self.shown.text.clone(), enabled: false, ..StandardItem::default() };
        let mut menu = vec![state.into()];
        for group in Act::MENU {
            menu.push(MenuItem::Separator);
            menu.extend(group.iter().map(|act| item(*act)));
        }
        menu
    }
}

fn item(act: Act) -> MenuItem<Item> {
    let activate = Box::new(move |item: &mut Item| item.owner.act(act));
    StandardItem { label: act.label().into(), activate, ..StandardItem::default() }.into()
}
