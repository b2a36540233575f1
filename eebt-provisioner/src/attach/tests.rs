use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Mutex;
use std::thread::sleep;

use super::fake::{FakeTor, descriptor, fingerprint, line};
use super::*;

const HOST: &str = "a.example";

fn exit_bridge(n: u8) -> ExitBridge {
    ExitBridge::new(&line(n), &[descriptor(n)]).unwrap()
}

fn wanted(exit_bridges: Vec<ExitBridge>) -> Wanted {
    Wanted { exit_bridges, chosen: vec![HOST.parse().unwrap()], asker: None }
}

fn begin(dir: &Path, tor: &FakeTor, wanted: Wanted) -> Result<(Attachment, bool), AttachError> {
    let control = Control::connect(&tor.place, Trust::Named(None)).unwrap();
    let dir = StateDir::open(dir).unwrap();
    Attachment::begin(&dir, &tor.place, control, wanted, &AtomicBool::new(false), &|_| {})
}

fn error(begun: Result<(Attachment, bool), AttachError>) -> AttachError {
    match begun {
        Err(error) => error,
        Ok(_) => panic!("attached"),
    }
}

/// Runs it until `done`, and then stops it.
fn run_until(
    attachment: Attachment,
    tor: &FakeTor,
    done: impl Fn(&FakeTor) -> bool,
) -> Result<(), AttachError> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let running = scope.spawn(|| attachment.run(&stop, &|_| {}));
        let start = Instant::now();
        while !done(tor) && !running.is_finished() {
            assert!(start.elapsed() < Duration::from_secs(30), "{:?}", tor.state().heard);
            sleep(Duration::from_millis(10));
        }
        stop.store(true, Ordering::Relaxed);
        running.join().unwrap()
    })
}

fn sent_to(n: u8) -> Vec<(String, String)> {
    HOST.parse::<Chosen>().unwrap().mapped(&fingerprint(n))
}

#[test]
fn only_the_hosts_of_a_dead_exit_bridge_move() {
    let mut all: Vec<ExitBridge> = [1, 2, 3].map(exit_bridge).into();
    let hosts: Vec<Chosen> = (0..60).map(|n| format!("h{n}.example").parse().unwrap()).collect();
    let places = |all: &[ExitBridge]| hosts.iter().map(|host| host.place(all)).collect::<Vec<_>>();
    let before = places(&all);
    for index in 0..3 {
        assert!(before.iter().filter(|place| **place == Some(index)).count() > 5, "{before:?}");
    }
    all[1].ended = true;
    let after = places(&all);
    for (before, after) in before.iter().zip(&after) {
        assert!(after.is_some_and(|after| after != 1));
        assert!(*before == Some(1) || before == after);
    }
    all.iter_mut().for_each(|one| one.dead_until = Some(Instant::now()));
    assert!(places(&all).iter().all(Option::is_none));
}

#[test]
fn an_ordered_stop_leaves_tor_as_it_was() {
    let (dir, tor) = (tempfile::tempdir().unwrap(), FakeTor::start());
    let (attachment, went_on) = begin(dir.path(), &tor, wanted(vec![exit_bridge(1)])).unwrap();
    assert!(!went_on);
    assert_eq!(tor.state().mapped, sent_to(1));
    // One that carries a stream, and one that tor made for itself.
    for id in ["8", "9"] {
        let circuit =
            format!("{id} BUILT $A,$B,${}~x PURPOSE=GENERAL SOCKS_USERNAME=\"x y\"", fingerprint(1));
        tor.state().circuits.push(circuit);
    }
    tor.state().heard.clear();
    run_until(attachment, &tor, |_| true).unwrap();
    assert!(tor.state().mapped.is_empty());
    let heard = tor.state().heard.clone();
    let at = |command: &str| heard.iter().position(|other| other.starts_with(command)).unwrap();
    assert!(
        at("MAPADDRESS a.example=a.example ") < at("CLOSECIRCUIT 8")
            && at("CLOSECIRCUIT 8") < at("CLOSECIRCUIT 9")
    );
    assert!(!heard.iter().any(|command| command.starts_with("CLOSECIRCUIT 1")), "{heard:?}");
    assert!(left(&StateDir::open(dir.path()).unwrap()).is_empty());
}

#[test]
fn an_error_leaves_hosts_where_they_go_and_the_next_one_goes_on() {
    let (dir, tor) = (tempfile::tempdir().unwrap(), FakeTor::start());
    let (attachment, _) = begin(dir.path(), &tor, wanted(vec![exit_bridge(1)])).unwrap();
    tor.say("999 nonsense");
    let error = run_until(attachment, &tor, |_| false).unwrap_err();
    assert!(matches!(error, AttachError::Left(_)), "{error}");
    assert!(error.hint().unwrap().contains("eebt attach --undo"));
    assert_eq!(tor.state().mapped, sent_to(1));
    assert_eq!(left(&StateDir::open(dir.path()).unwrap()), std::slice::from_ref(&tor.place));

    // What then fails before it is ready does not open another way, either.
    tor.state().options.insert("DisableNetwork".into(), "1".into());
    let error = self::error(begin(dir.path(), &tor, wanted(vec![exit_bridge(2)])));
    assert!(matches!(error, AttachError::Left(_)), "{error}");
    assert_eq!(tor.state().mapped, sent_to(1));
    tor.state().options.remove("DisableNetwork");

    // At no time is a host that stays chosen unmapped; one that is not chosen any more goes as before, at last.
    let other: Chosen = "b.example".parse().unwrap();
    tor.state().mapped.extend(other.mapped(&fingerprint(1)));
    tor.state().heard.clear();
    let (attachment, went_on) = begin(dir.path(), &tor, wanted(vec![exit_bridge(2)])).unwrap();
    assert!(went_on);
    assert_eq!(tor.state().mapped, sent_to(2));
    let maps = tor.heard("MAPADDRESS");
    assert!(maps[0].contains("a.example=a.example.0202"), "{maps:?}");
    assert_eq!(maps[1..], ["MAPADDRESS b.example=b.example b.example.=b.example."]);
    run_until(attachment, &tor, |_| true).unwrap();
    assert!(tor.state().mapped.is_empty());
}

#[test]
fn nothing_is_mapped_where_it_can_not_be_written_down() {
    let (dir, tor) = (tempfile::tempdir().unwrap(), FakeTor::start());
    let state = StateDir::open(dir.path()).unwrap();
    // As on a disk that is full: nothing can take the place of the record.
    let record = {
        begin(dir.path(), &tor, wanted(vec![exit_bridge(1)])).unwrap();
        let mut files = std::fs::read_dir(state.attach()).unwrap().map(|entry| entry.unwrap().path());
        files.find(|path| path.extension().is_some_and(|e| e == "json")).unwrap()
    };
    std::fs::remove_file(&record).unwrap();
    std::fs::create_dir_all(record.join("full")).unwrap();
    tor.state().mapped.clear();
    tor.state().heard.clear();
    let error = error(begin(dir.path(), &tor, wanted(vec![exit_bridge(1)])));
    assert!(matches!(error, AttachError::Folder(_)), "{error}");
    for command in ["MAPADDRESS", "EXTENDCIRCUIT", "SETCONF", "+POSTDESCRIPTOR"] {
        assert_eq!(tor.heard(command), [""; 0]);
    }
}

#[test]
fn one_refused_descriptor_leaves_one_exit_bridge_out() {
    let (dir, tor) = (tempfile::tempdir().unwrap(), FakeTor::start());
    let forged = |n| ExitBridge::new(&line(n), &[descriptor(n) + "forged\n"]).unwrap();
    let (attachment, _) = begin(dir.path(), &tor, wanted(vec![forged(1), exit_bridge(2)])).unwrap();
    assert_eq!(tor.state().mapped, sent_to(2));
    let [AttachError::Descriptor { fingerprint: out, why }] = attachment.left_out() else { panic!("none") };
    assert!(*out == fingerprint(1) && why.contains("Couldn't parse"));
    assert_eq!(attachment.exit_bridges().map(ExitBridge::fingerprint).collect::<Vec<_>>(), [fingerprint(2)]);
    run_until(attachment, &tor, |_| true).unwrap();
    let error = error(begin(dir.path(), &tor, wanted(vec![forged(1), forged(3)])));
    assert!(matches!(error, AttachError::Descriptor { .. }), "{error}");
}

#[test]
fn a_lookalike_does_not_keep_the_true_descriptor_away() {
    let (dir, tor) = (tempfile::tempdir().unwrap(), FakeTor::start());
    let both = [descriptor(1) + "forged\n", descriptor(1)];
    begin(dir.path(), &tor, wanted(vec![ExitBridge::new(&line(1), &both).unwrap()])).unwrap();
    assert_eq!(tor.state().descriptors[&fingerprint(1)], descriptor(1).trim_end());
}

#[test]
fn a_descriptor_that_tor_did_not_add_is_one_that_it_has_or_none() {
    let (dir, tor) = (tempfile::tempdir().unwrap(), FakeTor::start());
    tor.state().wants_no_descriptors = true;
    let error = error(begin(dir.path(), &tor, wanted(vec![exit_bridge(1)])));
    assert!(error.to_string().contains("was not new"), "{error}");
    // One with other keys is as good as none.
    tor.state()
        .descriptors
        .insert(fingerprint(1), descriptor(1).replace("ntor-onion-key ", "ntor-onion-key x"));
    self::error(begin(dir.path(), &tor, wanted(vec![exit_bridge(1)])));
    tor.state().descriptors.insert(fingerprint(1), descriptor(1));
    begin(dir.path(), &tor, wanted(vec![exit_bridge(1)])).unwrap();
}

#[test]
fn a_host_that_is_mapped_in_torrc_is_not_named() {
    let (dir, tor) = (tempfile::tempdir().unwrap(), FakeTor::start());
    tor.state().options.insert("MapAddress".into(), format!("{HOST} 192.0.2.9"));
    let error = error(begin(dir.path(), &tor, wanted(vec![exit_bridge(1)])));
    assert!(
        matches!(error, AttachError::Taken) && !eebt_proto::causes(&error).contains("example"),
        "{error}"
    );
    assert!(tor.state().mapped.is_empty());
}

#[test]
fn streams_that_are_open_to_chosen_hosts_come_again() {
    let (dir, tor) = (tempfile::tempdir().unwrap(), FakeTor::start());
    let streams = [
        "3 SUCCEEDED 1 A.example:443 SOCKS_USERNAME=\"x y\"",
        "4 SUCCEEDED 1 b.example:443 SOCKS_USERNAME=\"4 SUCCEEDED 1 a.example:443\"",
        "5 SENTCONNECT 1 a.example.:80",
        "6 SUCCEEDED 2 a.example.0101010101010101010101010101010101010101.exit:443",
    ];
    tor.state().streams = streams.map(str::to_owned).into();
    begin(dir.path(), &tor, wanted(vec![exit_bridge(1)])).unwrap();
    assert_eq!(tor.heard("CLOSESTREAM"), ["CLOSESTREAM 3 1", "CLOSESTREAM 5 1"]);
}

#[test]
fn a_descriptor_that_tor_forgot_is_given_again_and_a_new_one_is_asked_for() {
    let (dir, tor) = (tempfile::tempdir().unwrap(), FakeTor::start());
    let (program, new) = (dir.path().join("client"), descriptor(1) + "published later\n");
    std::fs::write(dir.path().join("new"), &new).unwrap();
    std::fs::write(&program, format!("#!/bin/sh\ncat {}\n", dir.path().join("new").display())).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o700)).unwrap();
    let asker = Asker { program, dir: StateDir::open(&dir.path().join("state")).unwrap(), network: None };
    let wanted = Wanted { asker: Some(asker), ..wanted(vec![exit_bridge(1)]) };
    let (attachment, _) = begin(&dir.path().join("state"), &tor, wanted).unwrap();
    {
        let mut state = tor.state();
        state.descriptors.clear();
        state.heard.clear();
    }
    let done = |tor: &FakeTor| {
        let state = tor.state();
        let laid = state.heard.iter().filter(|command| command.starts_with("EXTENDCIRCUIT"));
        laid.count() >= 2 && state.descriptors.values().any(|text| *text == new.trim_end())
    };
    run_until(attachment, &tor, done).unwrap();
    assert_eq!(tor.heard("+POSTDESCRIPTOR").len(), 2, "the old one at once, and then the new one");
}

#[test]
fn an_exit_bridge_whose_descriptor_is_lost_is_dead_and_asked_for_ever_more_seldom() {
    let (dir, tor) = (tempfile::tempdir().unwrap(), FakeTor::start());
    let (attachment, _) = begin(dir.path(), &tor, wanted(vec![exit_bridge(1), exit_bridge(2)])).unwrap();
    let (lost, lives) = if tor.state().mapped == sent_to(1) { (1, 2) } else { (2, 1) };
    {
        let mut state = tor.state();
        state.descriptors.remove(&fingerprint(lost));
        state.wants_no_descriptors = true;
        state.heard.clear();
    }
    let start = Instant::now();
    run_until(attachment, &tor, |tor| tor.state().mapped == sent_to(lives) && start.elapsed().as_secs() > 3)
        .unwrap();
    let tried =
        tor.heard("EXTENDCIRCUIT").iter().filter(|command| command.ends_with(&fingerprint(lost))).count();
    assert_eq!(tried, 2, "and then there is a pause");
}

#[test]
fn circuits_of_tors_own_are_asked_for_ever_more_seldom() {
    let (dir, tor) = (tempfile::tempdir().unwrap(), FakeTor::start());
    let (attachment, _) = begin(dir.path(), &tor, wanted(vec![exit_bridge(1)])).unwrap();
    {
        let mut state = tor.state();
        state.circuits.clear();
        state.heard.clear();
    }
    let (start, told) = (Instant::now(), Mutex::new(0));
    run_until(attachment, &tor, |tor| {
        *told.lock().unwrap() += tor.heard("EXTENDCIRCUIT 0").len();
        start.elapsed().as_secs() > 4
    })
    .unwrap();
    // At once, and after 3 s; not before 9 s again.
    assert_eq!(*told.lock().unwrap(), 2);
}

#[test]
fn the_next_exit_bridge_is_tried_where_the_first_one_can_not_be_reached() {
    let (dir, tor) = (tempfile::tempdir().unwrap(), FakeTor::start());
    tor.state().unreachable = fingerprint(1);
    let (attachment, _) = begin(dir.path(), &tor, wanted(vec![exit_bridge(1), exit_bridge(2)])).unwrap();
    let laid = tor.heard("EXTENDCIRCUIT");
    assert!(laid.len() == 2 && laid[1].ends_with(&fingerprint(2)), "{laid:?}");
    run_until(attachment, &tor, |_| true).unwrap();
}
