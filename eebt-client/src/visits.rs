//! What goes where now: sites, the ways to them, and how much went there. For the local page; in memory
//! only, bounded, and forgotten an hour after the last use.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::bridges::BridgeId;
use crate::connect::Group;
use crate::route::normal;

/// How long a site is remembered that nothing goes to any more.
pub const REMEMBERED: Duration = Duration::from_secs(3600);

/// Most sites; then an eighth of them goes that was not used for longest.
const MAX_SITES: usize = 4096;

/// Most ways and most users of one site that are told apart; then the oldest goes.
const MAX_WAYS: usize = 8;
const MAX_USERS: usize = 16;

/// Most notices; then the oldest goes.
const MAX_NOTICES: usize = 50;

/// The longest host that DNS can name. Longer ones are none.
pub(crate) const MAX_HOST: usize = 253;

/// A host, and the site in the address bar for which it was visited, where the browser says so.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Site {
    /// The first party.
    pub first_party: Option<String>,
    /// The host.
    pub host: String,
}

/// Which way a stream goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// A Tor exit.
    Tor,
    /// To an onion service.
    Onion,
    /// An exit bridge, and its number.
    ExitBridge(BridgeId, usize),
}

/// What went one way to a site.
#[derive(Default)]
struct Traffic {
    up: AtomicU64,
    down: AtomicU64,
    open: AtomicUsize,
}

struct OnWay {
    way: Way,
    used: Instant,
    traffic: Arc<Traffic>,
}

/// Who visits a site: new streams of theirs go where the last one went.
struct User {
    group: Group,
    port: u16,
    exit_bridge: Option<usize>,
}

struct Known {
    since: Instant,
    used: Instant,
    ways: Vec<OnWay>,
    users: Vec<User>,
    error: Option<String>,
    cut: CancellationToken,
}

/// That the exit bridge of a site was lost.
#[derive(Clone)]
pub struct Notice {
    /// To dismiss it by.
    pub id: u64,
    /// The site.
    pub site: Site,
    /// The number of the exit bridge that it had.
    pub lost: usize,
    /// Of the one that it has now.
    pub now: Option<usize>,
    /// Whether open streams broke.
    pub broke: bool,
    /// When.
    pub at: Instant,
}

/// A site, as it is shown to the person.
pub struct Shown {
    /// The site.
    pub site: Site,
    /// The ways that have open streams; without any, the last one.
    pub ways: Vec<Way>,
    /// Open streams.
    pub open: usize,
    /// Bytes towards the site, and from it.
    pub up: u64,
    /// See `up`.
    pub down: u64,
    /// First used.
    pub since: Instant,
    /// Last used.
    pub used: Instant,
    /// Why the last stream did not come about.
    pub error: Option<String>,
}

#[derive(Default)]
struct All {
    sites: HashMap<Site, Known>,
    notices: VecDeque<Notice>,
    noticed: u64,
}

/// The sites that are visited.
pub struct Visits {
    all: Mutex<All>,
    kept: bool,
}

impl Visits {
    /// None yet. Nothing is kept, ever, where there is no page to show it.
    pub fn new(kept: bool) -> Self {
        Self { all: Mutex::default(), kept }
    }

    fn all(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stream that was opened.
    pub(crate) fn begin(self: &Arc<Self>, group: &Group, host: &str, port: u16, way: Way) -> Visit {
        let site = site(group, host).filter(|_| self.kept);
        let mut visit = Visit { traffic: Arc::default(), cut: CancellationToken::new(), of: None };
        if let Some(site) = site {
            visit.of = Some(Of { visits: Arc::clone(self), site, group: group.clone(), port, way });
            visit.goes(way);
        }
        visit
    }

    /// A stream that did not come about.
    pub(crate) fn failed(&self, group: &Group, host: &str, why: String) {
        if let Some(site) = site(group, host).filter(|_| self.kept) {
            let now = Instant::now();
            let mut all = self.all();
            let known = all.known(&site, now);
            known.used = now;
            known.error = Some(why);
        }
    }

    /// The sites, the last used ones first.
    pub fn shown(&self) -> Vec<Shown> {
        let all = self.all();
        let mut shown: Vec<Shown> = all.sites.iter().map(|(site, known)| known.shown(site)).collect();
        shown.sort_by(|a, b| (b.open > 0, b.used, &a.site).cmp(&(a.open > 0, a.used, &b.site)));
        shown
    }

    /// The notices, the last one first.
    pub fn notices(&self) -> Vec<Notice> {
        self.all().notices.iter().rev().cloned().collect()
    }

    /// Takes a notice away, or all.
    pub fn dismiss(&self, id: Option<u64>) {
        self.all().notices.retain(|notice| id.is_some_and(|id| notice.id != id));
    }

    /// Who visits a site, and at which port.
    pub(crate) fn users(&self, site: &Site) -> Vec<(Group, u16)> {
        let all = self.all();
        let users = all.sites.get(site).map_or(&[][..], |known| &known.users);
        users.iter().map(|user| (user.group.clone(), user.port)).collect()
    }

    /// The person moved a group to another exit bridge: that is no news to them. How many sites it is that
    /// move with it.
    pub(crate) fn moved(&self, group: &Group) -> usize {
        let mut sites = 0;
        for known in self.all().sites.values_mut() {
            let mut visits = false;
            for user in known.users.iter_mut().filter(|user| user.group == *group) {
                (user.exit_bridge, visits) = (None, true);
            }
            sites += usize::from(visits);
        }
        sites
    }

    /// Ends the open streams of sites, so that programs open new ones, which go where they should. How many.
    pub(crate) fn cut(&self, which: impl Fn(&Site) -> bool) -> usize {
        let mut cut = 0;
        for (_, known) in self.all().sites.iter_mut().filter(|(site, _)| which(site)) {
            cut += known.open();
            std::mem::take(&mut known.cut).cancel();
        }
        cut
    }

    /// Forgets all that is over, and all notices.
    pub fn forget(&self) {
        let mut all = self.all();
        all.sites.retain(|_, known| known.open() > 0);
        all.notices.clear();
    }

    /// Forgets what was not used for long.
    pub fn prune(&self, now: Instant) {
        let mut all = self.all();
        let recent = |then: Instant| now.saturating_duration_since(then) < REMEMBERED;
        all.sites.retain(|_, known| known.open() > 0 || recent(known.used));
        all.notices.retain(|notice| recent(notice.at));
    }
}

impl All {
    fn known(&mut self, site: &Site, now: Instant) -> &mut Known {
        if self.sites.len() >= MAX_SITES && !self.sites.contains_key(site) {
            let mut ages: Vec<_> =
                self.sites.iter().map(|(s, k)| ((k.open() > 0, k.used), s.clone())).collect();
            ages.sort_by_key(|(age, _)| *age);
            for (_, old) in ages.into_iter().take(MAX_SITES / 8) {
                self.sites.remove(&old);
            }
        }
        self.sites.entry(site.clone()).or_insert_with(|| Known {
            since: now,
            used: now,
            ways: Vec::new(),
            users: Vec::new(),
            error: None,
            cut: CancellationToken::new(),
        })
    }

    fn notice(&mut self, site: &Site, lost: usize, next: Option<usize>, broke: bool, now: Instant) {
        // One for each site: what happens next is told there.
        let before = self.notices.iter().position(|notice| notice.site == *site);
        let before = before.and_then(|at| self.notices.remove(at));
        self.noticed += 1;
        let broke = broke || before.is_some_and(|b| b.broke && b.now.is_none());
        self.notices.push_back(Notice {
            id: self.noticed,
            site: site.clone(),
            lost,
            now: next,
            broke,
            at: now,
        });
        if self.notices.len() > MAX_NOTICES {
            self.notices.pop_front();
        }
    }
}

impl Known {
    fn open(&self) -> usize {
        self.ways.iter().map(|on| on.traffic.open.load(Ordering::Relaxed)).sum()
    }

    fn shown(&self, site: &Site) -> Shown {
        let sum = |of: fn(&Traffic) -> &AtomicU64| {
            self.ways.iter().map(|on| of(&on.traffic).load(Ordering::Relaxed)).sum()
        };
        let mut ways: Vec<_> =
            self.ways.iter().filter(|on| on.traffic.open.load(Ordering::Relaxed) > 0).collect();
        if ways.is_empty() {
            ways = self.ways.iter().max_by_key(|on| on.used).into_iter().collect();
        }
        Shown {
            site: site.clone(),
            ways: ways.iter().map(|on| on.way).collect(),
            open: self.open(),
            up: sum(|t| &t.up),
            down: sum(|t| &t.down),
            since: self.since,
            used: self.used,
            error: self.error.clone(),
        }
    }

    fn on_way(&mut self, way: Way, now: Instant) -> Arc<Traffic> {
        if let Some(on) = self.ways.iter_mut().find(|on| on.way == way) {
            on.used = now;
            return Arc::clone(&on.traffic);
        }
        if self.ways.len() >= MAX_WAYS {
            let oldest = self.ways.iter().enumerate().min_by_key(|(_, on)| on.used).map(|(i, _)| i);
            oldest.map(|i| self.ways.swap_remove(i));
        }
        let traffic = Arc::<Traffic>::default();
        self.ways.push(OnWay { way, used: now, traffic: Arc::clone(&traffic) });
        traffic
    }

    /// Notes where a user goes, and returns the exit bridge that they had if it is another one now.
    fn user(&mut self, group: &Group, port: u16, exit_bridge: Option<usize>) -> Option<usize> {
        if let Some(user) = self.users.iter_mut().find(|user| user.group == *group && user.port == port) {
            let had = user.exit_bridge;
            user.exit_bridge = exit_bridge.or(had);
            return had.filter(|had| exit_bridge.is_some_and(|now| now != *had));
        }
        if self.users.len() >= MAX_USERS {
            self.users.remove(0);
        }
        self.users.push(User { group: group.clone(), port, exit_bridge });
        None
    }
}

/// One open stream. It counts as open until this is dropped.
pub(crate) struct Visit {
    traffic: Arc<Traffic>,
    cut: CancellationToken,
    of: Option<Of>,
}

struct Of {
    visits: Arc<Visits>,
    site: Site,
    group: Group,
    port: u16,
    way: Way,
}

impl Visit {
    /// Bytes towards the site.
    pub(crate) fn up(&self, bytes: usize) {
        self.traffic.up.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes from the site.
    pub(crate) fn down(&self, bytes: usize) {
        self.traffic.down.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Until the person has it cut.
    pub(crate) fn cut(&self) -> impl Future<Output = ()> + use<> {
        self.cut.clone().cancelled_owned()
    }

    /// It goes this way now.
    pub(crate) fn goes(&mut self, way: Way) {
        let Some(of) = &mut self.of else { return };
        of.way = way;
        let now = Instant::now();
        let number = if let Way::ExitBridge(_, number) = way { Some(number) } else { None };
        let mut all = of.visits.all();
        let known = all.known(&of.site, now);
        known.used = now;
        known.error = None;
        let had = known.user(&of.group, of.port, number);
        let traffic = known.on_way(way, now);
        self.cut = known.cut.clone();
        traffic.open.fetch_add(1, Ordering::Relaxed);
        let before = std::mem::replace(&mut self.traffic, traffic);
        let _was = before.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        let pending = all.notices.iter().find(|notice| notice.site == of.site && notice.now.is_none());
        match (had, pending.map(|notice| notice.lost), number) {
            (Some(had), _, next @ Some(_)) => all.notice(&of.site, had, next, false, now),
            (None, Some(lost), next @ Some(_)) => all.notice(&of.site, lost, next, false, now),
            _ => {}
        }
    }

    /// Its circuit to an exit bridge was lost.
    pub(crate) fn lost(&self) {
        if let Some(of) = &self.of
            && let Way::ExitBridge(_, number) = of.way
        {
            of.visits.all().notice(&of.site, number, None, true, Instant::now());
        }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let Some(of) = &self.of else { return };
        self.traffic.open.fetch_sub(1, Ordering::Relaxed);
        if let Some(known) = of.visits.all().sites.get_mut(&of.site) {
            known.used = Instant::now();
        }
    }
}

/// The site that a stream belongs to; `None` for what can be no host.
fn site(group: &Group, host: &str) -> Option<Site> {
    let host = normal(host);
    (host.len() <= MAX_HOST).then(|| Site { first_party: first_party(&group.credentials), host })
}

/// The site in the address bar. Tor Browser gives it as SOCKS user name, with the number of the container
/// behind it; other programs give what they like, which counts only if it looks like a host.
pub(crate) fn first_party(credentials: &[u8]) -> Option<String> {
    let [5, length, rest @ ..] = credentials else { return None };
    let user = std::str::from_utf8(rest.get(..usize::from(*length))?).ok()?;
    let name = match user.split_once(':') {
        Some((name, container)) if container.bytes().all(|c| c.is_ascii_digit()) => name,
        _ => user,
    };
    let ok = |label: &str| {
        !label.is_empty() && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_')
    };
    (name.contains('.') && name.split('.').all(ok)).then(|| normal(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connect::Protocol;

    fn group(user: &str) -> Group {
        let credentials = [&[5, user.len() as u8], user.as_bytes(), b"password"].concat();
        let listener = ([127, 0, 0, 1], 9150).into();
        Group { listener, protocol: Protocol::Socks5, peer: [127, 0, 0, 1].into(), credentials }
    }

    fn visits() -> Arc<Visits> {
        Arc::new(Visits::new(true))
    }

    fn bridge(n: u8) -> Way {
        use crate::bridges::{Bridges, Now, Source};
        use eebt_proto::{BridgeLine, CircuitReach, Reach};
        let address = vec![([198, 51, 100, n], 443).into()];
        let reach = CircuitReach {
            addresses: address,
            ed25519: [n; 32],
            rsa: [n; 20],
            ntor: [n; 32],
            protocols: String::new(),
        };
        let line = BridgeLine { reach: Reach::Circuit(reach), ports: "web".parse().unwrap(), expires: None };
        let mut bridges = Bridges::<u8>::default();
        bridges.replace(Source::Given, [line]);
        Way::ExitBridge(bridges.choose(&0, 443, &[], Now::read()).unwrap(), n.into())
    }

    #[test]
    fn tor_browsers_user_name_is_the_first_party() {
        for (user, party) in [
            ("Example.com", Some("example.com")),
            ("example.com:3", Some("example.com")),
            ("example.com:x", None),
            ("--unknown--", None),
            ("alice", None),
            ("<script>.com", None),
            ("a..b", None),
            ("", None),
        ] {
            assert_eq!(first_party(&group(user).credentials).as_deref(), party, "{user:?}");
        }
        assert_eq!(first_party(b"Basic ZXhhbXBsZS5jb20="), None);
        assert_eq!(first_party(&[5, 200, b'a']), None);
    }

    #[test]
    fn streams_and_bytes_are_counted_by_site() {
        let visits = visits();
        let one = visits.begin(&group("a.example"), "Cdn.example.", 443, Way::Tor);
        let mut two = visits.begin(&group("a.example"), "cdn.example", 443, Way::Tor);
        let other = visits.begin(&group("b.example"), "cdn.example", 443, Way::Tor);
        one.up(10);
        two.down(500);
        two.goes(bridge(1));
        two.down(5);
        let shown = visits.shown();
        assert_eq!(shown.len(), 2, "first parties are kept apart");
        let a = shown.iter().find(|s| s.site.first_party.as_deref() == Some("a.example")).unwrap();
        assert_eq!((a.site.host.as_str(), a.open, a.up, a.down), ("cdn.example", 2, 10, 505));
        assert!(a.ways == [Way::Tor, bridge(1)]);
        drop((one, two, other));
        let shown = visits.shown();
        assert!(shown.iter().all(|s| s.open == 0 && s.ways.len() == 1));
        visits.forget();
        assert!(visits.shown().is_empty());
    }

    #[test]
    fn there_is_a_bound_and_idle_ones_go_first() {
        let visits = visits();
        let open = visits.begin(&group("x"), "open.example", 443, Way::Tor);
        for n in 0..MAX_SITES + 10 {
            visits.begin(&group("x"), &format!("{n}.example"), 443, Way::Tor);
        }
        let shown = visits.shown();
        assert!(shown.len() <= MAX_SITES && shown.len() > MAX_SITES / 2);
        assert_eq!(shown[0].site.host, "open.example");
        drop(open);
        let long = "a".repeat(300);
        visits.begin(&group("x"), &long, 443, Way::Tor);
        assert!(visits.shown().iter().all(|s| s.site.host != long));
        let users = Site { first_party: None, host: "u.example".into() };
        for n in 0..100 {
            visits.begin(&group(&format!("u{n}")), "u.example", 443, bridge(n));
        }
        assert_eq!(visits.users(&users).len(), MAX_USERS);
        assert!(visits.all().sites[&users].ways.len() <= MAX_WAYS);
        visits.prune(Instant::now() + REMEMBERED);
        assert!(visits.shown().is_empty());
    }

    #[test]
    fn without_a_page_nothing_is_kept() {
        let visits = Arc::new(Visits::new(false));
        let mut visit = visits.begin(&group("x"), "example.com", 443, Way::Tor);
        visit.goes(bridge(1));
        visit.up(1);
        visit.lost();
        visits.failed(&group("x"), "example.com", "x".into());
        assert!(visits.shown().is_empty() && visits.notices().is_empty());
    }

    #[test]
    fn the_loss_of_an_exit_bridge_is_told_once_and_then_what_came_of_it() {
        let visits = visits();
        let alice = group("a.example");
        let first = visits.begin(&alice, "a.example", 443, bridge(1));
        let second = visits.begin(&alice, "a.example", 443, bridge(1));
        assert!(visits.notices().is_empty());
        first.lost();
        second.lost();
        drop((first, second));
        let [notice] = &visits.notices()[..] else { panic!() };
        assert_eq!((notice.lost, notice.now, notice.broke), (1, None, true));
        let _third = visits.begin(&alice, "a.example", 443, bridge(2));
        let [notice] = &visits.notices()[..] else { panic!() };
        assert_eq!((notice.lost, notice.now, notice.broke), (1, Some(2), true));
        visits.dismiss(Some(notice.id));
        assert!(visits.notices().is_empty());
        // It also counts when no stream was open at that time.
        let _fourth = visits.begin(&alice, "a.example", 443, bridge(3));
        let [notice] = &visits.notices()[..] else { panic!() };
        assert_eq!((notice.lost, notice.now, notice.broke), (2, Some(3), false));
        visits.dismiss(None);
        assert!(visits.notices().is_empty());
    }

    #[test]
    fn what_the_person_does_is_no_news_and_neither_are_others() {
        let visits = visits();
        let alice = group("a.example");
        visits.begin(&alice, "a.example", 443, bridge(1));
        visits.begin(&alice, "cdn.example", 443, bridge(1));
        visits.begin(&group("b.example"), "a.example", 443, bridge(2));
        visits.begin(&alice, "a.example", 8443, bridge(3));
        assert_eq!(visits.moved(&alice), 2);
        assert_eq!(visits.moved(&alice), 2, "once more, before they opened a stream");
        visits.begin(&alice, "a.example", 443, bridge(2));
        visits.begin(&alice, "a.example", 443, Way::Tor);
        assert!(visits.notices().is_empty());
    }

    #[test]
    fn notices_are_bounded() {
        let visits = visits();
        for n in 0..2 * MAX_NOTICES {
            visits.begin(&group("x"), &format!("{n}.example"), 443, bridge(1)).lost();
        }
        assert_eq!(visits.notices().len(), MAX_NOTICES);
        assert_eq!(visits.notices()[0].site.host, format!("{}.example", 2 * MAX_NOTICES - 1));
    }

    #[tokio::test]
    async fn a_site_is_cut_and_new_streams_are_not() {
        let visits = visits();
        let a = visits.begin(&group("a.example"), "a.example", 443, Way::Tor);
        let b = visits.begin(&group("a.example"), "b.example", 443, Way::Tor);
        assert_eq!(visits.cut(|site| site.host == "a.example"), 1);
        a.cut().await;
        let next = visits.begin(&group("a.example"), "a.example", 443, Way::Tor);
        for open in [b, next] {
            let cut = tokio::time::timeout(Duration::from_millis(10), open.cut()).await;
            assert!(cut.is_err());
        }
    }
}
