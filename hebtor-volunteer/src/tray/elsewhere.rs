//! Windows and macOS. Their trays want the program's first thread for themselves, so that the app runs on another one.

use std::panic::resume_unwind;

use tokio::sync::mpsc;
use tray_icon::menu::{Menu, MenuEvent, MenuItem, PredefinedMenuItem};
use tray_icon::{Icon, TrayIcon, TrayIconBuilder};
use winit::application::ApplicationHandler;
use winit::event::WindowEvent;
use winit::event_loop::{ActiveEventLoop, EventLoop, EventLoopProxy};
use winit::window::WindowId;

use super::{Act, LOOK, Owner, SIDE, Shown, TITLE, disc};

/// What shows it, from the app's thread.
pub struct Tray {
    /// Where there is one.
    icon: Option<EventLoopProxy<Wake>>,
    chosen: mpsc::UnboundedReceiver<Act>,
}

/// What the first thread is told.
#[derive(Debug)]
enum Wake {
    Show(Shown),
    Chosen(MenuEvent),
    End,
}

/// Runs `app`, which may show a tray, until it ends.
pub fn on_this_thread<T: Send>(app: impl FnOnce(Tray) -> T + Send) -> T {
    let (sender, chosen) = mpsc::unbounded_channel();
    let event_loop = match event_loop() {
        Ok(event_loop) => event_loop,
        Err(error) => {
            tracing::info!(%error, "no tray");
            return app(Tray { icon: None, chosen });
        }
    };
    let icon = event_loop.create_proxy();
    let (events, end) = (icon.clone(), icon.clone());
    MenuEvent::set_event_handler(Some(move |event| drop(events.send_event(Wake::Chosen(event)))));
    std::thread::scope(|scope| {
        let app = scope.spawn(move || {
            let _end = Ends(end);
            app(Tray { icon: Some(icon), chosen })
        });
        let mut first_thread = FirstThread { chosen: sender, menu: Vec::new(), state: None, icon: None };
        if let Err(error) = event_loop.run_app(&mut first_thread) {
            tracing::warn!(%error, "the tray ended");
        }
        app.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

fn event_loop() -> Result<EventLoop<Wake>, winit::error::EventLoopError> {
    let mut builder = EventLoop::with_user_event();
    // No place in the dock, and no menu bar.
    #[cfg(target_os = "macos")]
    {
        use winit::platform::macos::{ActivationPolicy, EventLoopBuilderExtMacOS as _};
        builder.with_activation_policy(ActivationPolicy::Accessory).with_default_menu(false);
    }
    builder.build()
}

/// Ends the first thread's part when the app ends, however it does.
struct Ends(EventLoopProxy<Wake>);

impl Drop for Ends {
    fn drop(&mut self) {
        let _gone = self.0.send_event(Wake::End);
    }
}

impl Tray {
    /// Shows it, as long as the app runs. Never returns.
    pub async fn run(mut self, owner: Owner) {
        let mut shown = None;
        loop {
            let now = Shown::of(&owner.app);
            if shown.as_ref() != Some(&now) {
                shown = Some(now.clone());
                if let Some(icon) = &self.icon {
                    let _gone = icon.send_event(Wake::Show(now));
                }
            }
            tokio::select! {
                Some(act) = self.chosen.recv() => owner.act(act),
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }
}

/// What the first thread has.
struct FirstThread {
    chosen: mpsc::UnboundedSender<Act>,
    menu: Vec<(MenuItem, Act)>,
    state: Option<MenuItem>,
    icon: Option<TrayIcon>,
}

impl FirstThread {
    fn show(&mut self, shown: Shown) -> Result<(), Box<dyn std::error::Error>> {
        let Shown { colour, text } = shown;
        let image = Icon::from_rgba(disc(colour).flatten().collect(), SIDE, SIDE)?;
        let hover = format!("{TITLE}: {text}");
        if let (Some(icon), Some(state)) = (&self.icon, &self.state) {
            icon.set_icon(Some(image))?;
            icon.set_tooltip(Some(hover))?;
            state.set_text(text);
            return Ok(());
        }
        let (menu, state) = (Menu::new(), MenuItem::new(text, false, None));
        menu.append(&state)?;
        for group in Act::MENU {
            menu.append(&PredefinedMenuItem::separator())?;
            for act in group {
                let item = MenuItem::new(act.label(), true, None);
                menu.append(&item)?;
                self.menu.push((item, *act));
            }
        }
        let builder = TrayIconBuilder::new().with_menu(Box::new(menu)).with_icon(image).with_tooltip(hover);
        (self.icon, self.state) = (Some(builder.build()?), Some(state));
        Ok(())
    }
}

impl ApplicationHandler<Wake> for FirstThread {
    fn user_event(&mut self, event_loop: &ActiveEventLoop, wake: Wake) {
        match wake {
            Wake::Show(shown) => {
                if let Err(error) = self.show(shown) {
                    tracing::warn!(%error, "the tray can't be shown");
                }
            }
            Wake::Chosen(event) => {
                let chosen = self.menu.iter().find(|(item, _)| item.id() == event.id());
                if let Some((_, act)) = chosen {
                    let _ended = self.chosen.send(*act);
                }
            }
            Wake::End => event_loop.exit(),
        }
    }

    // There are no windows.
    fn resumed(&mut self, _event_loop: &ActiveEventLoop) {}
    fn window_event(&mut self, _event_loop: &ActiveEventLoop, _window: WindowId, _event: WindowEvent) {}
}
