//! The icon in the tray: a colour that tells the state, and the main switch. StatusNotifierItem on Linux, the system's own tray on
//! Windows and macOS; where there is none, there is none, and all of it is on the page.

#[cfg(not(target_os = "linux"))]
mod elsewhere;
#[cfg(target_os = "linux")]
mod linux;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::app::{App, Phase};
use crate::rules::Decision;
use crate::settings::Switch;
use crate::window;

#[cfg(not(target_os = "linux"))]
pub use elsewhere::{Tray, on_this_thread};
#[cfg(target_os = "linux")]
pub use linux::{Tray, on_this_thread};

/// How often it is looked whether something changed.
const LOOK: Duration = Duration::from_secs(2);

/// Its side, in pixels.
const SIDE: u32 = 22;

/// Its name.
const TITLE: &str = "Exit bridge at home";

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

/// What can be chosen in its menu.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Open,
    On,
    Pause,
    Off,
    End,
}

impl Act {
    /// All of them, in order, in the groups that a line parts.
    const MENU: [&[Self]; 2] = [&[Self::Open, Self::On, Self::Pause, Self::Off], &[Self::End]];

    fn label(self) -> &'static str {
        match self {
            Self::Open => "Open",
            Self::On => "On",
            Self::Pause => "Pause for 1 hour",
            Self::Off => "Off",
            Self::End => "End this app",
        }
    }
}

/// The app that it belongs to.
#[derive(Clone)]
pub struct Owner {
    /// What it shows, and switches.
    pub app: Arc<App>,
    /// Where the page is found.
    pub state_dir: PathBuf,
    /// Ends the app.
    pub shutdown: CancellationToken,
}

impl Owner {
    fn act(&self, act: Act) {
        match act {
            Act::Open => self.open(),
            Act::On => self.switch(Switch::On),
            Act::Pause => self.switch(Switch::Paused(Timestamp::now() + Duration::from_secs(3600))),
            Act::Off => self.switch(Switch::Off),
            Act::End => self.shutdown.cancel(),
        }
    }

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

/// A disc of one colour on nothing: red, green, blue and alpha of each pixel.
fn disc([red, green, blue]: Colour) -> impl Iterator<Item = [u8; 4]> {
    let (middle, radius) = (f64::from(SIDE - 1) / 2.0, f64::from(SIDE) / 2.0 - 2.0);
    (0..SIDE).flat_map(move |y| (0..SIDE).map(move |x| (x, y))).map(move |(x, y)| {
        let away = (f64::from(x) - middle).hypot(f64::from(y) - middle);
        // From 0 to 255.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let alpha = ((radius - away + 0.5).clamp(0.0, 1.0) * 255.0) as u8;
        [red, green, blue, alpha]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_icon_is_a_disc_on_nothing() {
        let pixels: Vec<_> = disc([1, 2, 3]).collect();
        let pixel = |x: u32, y: u32| pixels[(y * SIDE + x) as usize];
        assert_eq!(pixels.len(), (SIDE * SIDE) as usize);
        assert_eq!(pixel(0, 0)[3], 0);
        assert_eq!(pixel(SIDE / 2, SIDE / 2), [1, 2, 3, 255]);
    }
}
