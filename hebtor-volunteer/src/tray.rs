//! The icon in the tray: a colour that tells the state, and the main switch. StatusNotifierItem on Linux; where there is no
//! tray, there is none, and all of it is on the page.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use ksni::menu::StandardItem;
use ksni::{Icon, MenuItem, ToolTip, Tray, TrayMethods as _};
use tokio_util::sync::CancellationToken;

use crate::app::{App, Phase};
use crate::rules::Decision;
use crate::settings::Switch;
use crate::window;

/// How often it is looked whether something changed.
const LOOK: Duration = Duration::from_secs(2);

/// Its side, in pixels.
const SIDE: i32 = 22;

/// A colour: red, green, blue.
type Colour = [u8; 3];

/// What it shows.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shown {
    colour: Colour,
    text: String,
}

impl Shown {
    fn of(app: &App) -> Self {
        let state = app.state();
        let colour = match state.phase {
            Phase::Serving => [0x1a, 0x7f, 0x37],
            Phase::Starting | Phase::Draining => [0xd4, 0x96, 0x1c],
            Phase::Resting if state.decision == Decision::Serve && state.error.is_some() => {
                [0xb4, 0x2b, 0x2b]
            }
            Phase::Resting => [0x80, 0x88, 0x92],
        };
        Self { colour, text: state.words() }
    }
}

struct Volunteer {
    app: Arc<App>,
    state_dir: PathBuf,
    shutdown: CancellationToken,
    shown: Shown,
}

impl Volunteer {
    fn switch(&self, to: Switch) {
        if let Err(error) = self.app.switch(to) {
            tracing::warn!(%error, "the switch in the tray can't be written down");
        }
    }

    fn open(&self) {
        let opened = eebt_page::entrance(&self.state_dir, "hebtor-volunteer").map(|file| window::open(&file));
        if !matches!(opened, Ok(Ok(()))) {
            tracing::warn!("no window could be opened");
        }
    }
}

impl Tray for Volunteer {
    fn id(&self) -> String {
        "hebtor-volunteer".into()
    }

    fn title(&self) -> String {
        "Exit bridge at home".into()
    }

    fn tool_tip(&self) -> ToolTip {
        ToolTip { title: self.title(), description: self.shown.text.clone(), ..ToolTip::default() }
    }

    fn icon_pixmap(&self) -> Vec<Icon> {
        vec![disc(self.shown.colour)]
    }

    fn activate(&mut self, _x: i32, _y: i32) {
        self.open();
    }

    fn menu(&self) -> Vec<MenuItem<Self>> {
        let item = |label: &str, does: fn(&mut Self)| -> MenuItem<Self> {
            StandardItem { label: label.into(), activate: Box::new(does), ..StandardItem::default() }.into()
        };
        let state =
            StandardItem { label: self.shown.text.clone(), enabled: false, ..StandardItem::default() };
        vec![
            state.into(),
            MenuItem::Separator,
            item("Open", |tray| tray.open()),
            item("On", |tray| tray.switch(Switch::On)),
            item("Pause for 1 hour", |tray| {
                tray.switch(Switch::Paused(Timestamp::now() + Duration::from_secs(3600)));
            }),
            item("Off", |tray| tray.switch(Switch::Off)),
            MenuItem::Separator,
            item("End this app", |tray| tray.shutdown.cancel()),
        ]
    }
}

/// A disc of one colour: ARGB, in the order of the network.
fn disc(colour: Colour) -> Icon {
    let (middle, radius) = (f64::from(SIDE - 1) / 2.0, f64::from(SIDE) / 2.0 - 2.0);
    let mut data = Vec::new();
    for y in 0..SIDE {
        for x in 0..SIDE {
            let away = (f64::from(x) - middle).hypot(f64::from(y) - middle);
            // From 0 to 255.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let alpha = ((radius - away + 0.5).clamp(0.0, 1.0) * 255.0) as u8;
            data.push(alpha);
            data.extend(colour);
        }
    }
    Icon { width: SIDE, height: SIDE, data }
}

/// Shows it, as long as the app runs. Never returns.
pub async fn run(app: Arc<App>, state_dir: PathBuf, shutdown: CancellationToken) {
    let mut shown = Shown::of(&app);
    let tray = Volunteer { app: Arc::clone(&app), state_dir, shutdown, shown: shown.clone() };
    // The panel may start later than we do.
    let handle = match tray.assume_sni_available(true).spawn().await {
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
            handle.update(|tray| tray.shown = now).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_icon_is_a_disc_on_nothing() {
        let icon = disc([1, 2, 3]);
        assert_eq!(icon.data.len(), (SIDE * SIDE * 4) as usize);
        let pixel = |x: i32, y: i32| &icon.data[((y * SIDE + x) * 4) as usize..][..4];
        assert_eq!(pixel(0, 0)[0], 0);
        assert_eq!(pixel(SIDE / 2, SIDE / 2), [255, 1, 2, 3]);
    }
}
