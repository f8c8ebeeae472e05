//! Limits of a container whose control group is a folder, changed by a runtime that keeps state as runc does.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

use serde_json::{Value as Json, json};

use super::*;
use crate::{
    hotplug::{Runtime, UpdateError},
    limits::{Amounts, File, LimitError, Value, effective},
    oci::RuntimeError,
    seccomp::{Denied, RecordError},
};

/// Writes what it is told to files, and with each update what it was told of memory before.
#[derive(Debug, Default)]
struct Folder {
    at: PathBuf,
    memory: Mutex<Option<i64>>,
    told: Mutex<Vec<Json>>,
    fails: AtomicBool,
    /// What `memory.max` was never to be below.
    floor: AtomicU64,
}

impl Folder {
    fn write(&self, file: &str, text: &str) {
        let floor = self.floor.load(Relaxed);
        if file == "memory.max" && text != "max" {
            assert!(text.parse::<u64>().unwrap() >= floor, "memory.max is {text}, and was to be {floor}");
        }
        fs::write(self.at.join(file), format!("{text}\n")).unwrap();
    }
}

impl Runtime for Folder {
    fn update(&self, resources: &[u8]) -> Result<(), RuntimeError> {
        if self.fails.load(Relaxed) {
            return Err(RuntimeError::Reaper);
        }
        let told: Json = serde_json::from_slice(resources).unwrap();
        self.told.lock().unwrap().push(told.clone());
        let text = |n: i64| if n < 0 { "max".to_owned() } else { n.to_string() };
        let mut memory = self.memory.lock().unwrap();
        *memory = told["memory"]["limit"].as_i64().or(*memory);
        if let Some(limit) = *memory {
            self.write("memory.max", &text(limit));
        }
        if let Some(limit) = told["pids"]["limit"].as_i64() {
            self.write("pids.max", &text(limit));
        }
        if let (Some(quota), Some(period)) = (told["cpu"]["quota"].as_i64(), told["cpu"]["period"].as_u64()) {
            self.write("cpu.max", &format!("{} {period}", text(quota)));
        }
        if let Some(cpus) = told["cpu"]["cpus"].as_str().filter(|cpus| !cpus.is_empty()) {
            self.write("cpuset.cpus", cpus);
        }
        if let Some(shares) = told["cpu"]["shares"].as_u64() {
            self.write("cpu.weight", &(1 + ((shares - 2) * 9999) / 262_142).to_string());
        }
        for (file, value) in told["unified"].as_object().into_iter().flatten() {
            self.write(file, value.as_str().unwrap());
        }
        Ok(())
    }

    fn check_denials(&self, _: &Denied) -> Result<(), RecordError> {
        Ok(())
    }
}

struct Limited {
    container: Container,
    folder: Arc<Folder>,
}

const START: [(&str, &str); 9] = [
    ("memory.max", "268435456"),
    ("memory.high", "max"),
    ("memory.swap.max", "max"),
    ("memory.current", "1048576"),
    ("pids.max", "max"),
    ("pids.current", "1"),
    ("cpu.max", "50000 100000"),
    ("cpu.weight", "100"),
    ("cpuset.cpus", ""),
];

impl Limited {
    fn start(dir: &Path) -> Self {
        let at = dir.join("group/inner");
        fs::create_dir_all(&at).unwrap();
        fs::write(dir.join("group/cpuset.cpus.effective"), "0-3\n").unwrap();
        for (file, value) in START {
            fs::write(at.join(file), format!("{value}\n")).unwrap();
        }
        let folder = Folder { at, memory: Mutex::new(Some(268_435_456)), ..Folder::default() };
        Self { container: Container::start(dir, ""), folder: Arc::new(folder) }
    }

    fn engine(&self) -> Engine {
        let runtime: Arc<dyn Runtime> = self.folder.clone();
        let live = LiveTask { cgroup: Some(self.folder.at.clone()), runtime, ..self.container.live() };
        Engine::new(Arc::new(One(live)), Kernel::known(LayersBy::Descriptor))
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.folder.at.join(file)).unwrap().trim().to_owned()
    }

    fn all(&self) -> Vec<(&str, String)> {
        START.iter().map(|(file, _)| (*file, self.read(file))).collect()
    }

    fn set(&self, file: &str, value: &str) {
        fs::write(self.folder.at.join(file), format!("{value}\n")).unwrap();
    }

    fn update(&self, engine: &Engine, resources: &Json) -> Result<(), UpdateError> {
        engine.update("c", resources.to_string().as_bytes(), self.folder.as_ref())
    }

    fn journal(&self) -> PathBuf {
        self.container.bundle.join("capsule-hotplug.json")
    }
}

fn amounts(all: &[(&str, &str)]) -> Amounts {
    let one = |(name, text): &(&str, &str)| {
        let file = File::parse(name).unwrap();
        (file.clone(), Value::parse(&file, text).unwrap())
    };
    all.iter().map(one).collect()
}

fn change(grants: &[(&str, &str)], caps: &[(&str, &str)]) -> Change {
    Change { grants: amounts(grants), caps: amounts(caps) }
}

fn give(engine: &Engine, name: &str, change: Change) -> Result<(), EngineError> {
    engine.attach_all("c", &id(name), Wanted { change, ..Wanted::default() }).map(drop)
}

/// Which attachments' limits are in force.
fn in_force(engine: &Engine) -> Vec<(String, bool)> {
    engine.list_limits(None).unwrap().into_iter().map(|l| (l.id.to_string(), l.in_force)).collect()
}

#[test]
fn privileged_limits_overlap_and_end_in_any_order() {
    on_host(|dir| {
        let limited = Limited::start(dir);
        let (engine, before) = (limited.engine(), limited.all());
        let first = change(&[("memory.max", "67108864"), ("cpu.max", "25000 50000")], &[("pids.max", "20")]);
        give(&engine, "a", first.clone()).unwrap();
        assert_eq!([limited.read("memory.max"), limited.read("cpu.max")], ["335544320", "100000 100000"]);
        assert_eq!(limited.read("pids.max"), "20");
        let second = change(
            &[("memory.max", "1048576"), ("pids.max", "5"), ("cpu.weight", "50")],
            &[("pids.max", "7"), ("cpuset.cpus", "1-2"), ("memory.high", "4096000")],
        );
        give(&engine, "b", second).unwrap();
        assert_eq!([limited.read("memory.max"), limited.read("pids.max")], ["336592896", "7"]);
        assert_eq!([limited.read("cpuset.cpus"), limited.read("cpu.weight")], ["1-2", "150"]);
        assert_eq!(in_force(&engine), [("a".to_owned(), true), ("b".to_owned(), true)]);
        // Again: the same is a success, anything else a conflict.
        give(&engine, "a", first).unwrap();
        let other = give(&engine, "a", change(&[("pids.max", "1")], &[])).unwrap_err();
        assert!(matches!(other, EngineError::Conflict(_)));
        assert!(
            matches!(give(&engine, "c", Change::default()), Ok(())),
            "nothing is wanted, and nothing is there"
        );

        assert_eq!(engine.detach("c", &id("a"), false).unwrap(), gone());
        assert_eq!([limited.read("memory.max"), limited.read("pids.max")], ["269484032", "7"]);
        assert_eq!(limited.read("cpu.max"), "50000 100000");
        assert_eq!(engine.detach("c", &id("b"), false).unwrap(), gone());
        assert_eq!(limited.all(), before);
        let journal = fs::read_to_string(limited.journal()).unwrap();
        assert!(journal.contains(r#""limits":{"records":[],"own":{},"written":{}}"#), "{journal}");
    });
}

#[test]
fn privileged_an_update_is_neither_lost_nor_undoes_anything() {
    on_host(|dir| {
        let limited = Limited::start(dir);
        let engine = limited.engine();
        // Nothing is attached: as it came.
        limited.update(&engine, &json!({"pids": {"limit": 300}, "odd": 1})).unwrap();
        assert_eq!(limited.folder.told.lock().unwrap().last().unwrap()["odd"], 1);
        let wanted = change(&[("memory.max", "67108864"), ("cpu.weight", "50")], &[("pids.max", "20")]);
        give(&engine, "a", wanted).unwrap();
        limited.folder.floor.store(335_544_320, Relaxed);
        // What it does not name is not changed.
        limited.update(&engine, &json!({"cpu": {"quota": 10000, "period": 20000}})).unwrap();
        assert_eq!([limited.read("cpu.max"), limited.read("memory.max")], ["10000 20000", "335544320"]);
        limited.update(&engine, &json!({"memory": {"limit": 536_870_912}, "pids": {"limit": 10}})).unwrap();
        assert_eq!([limited.read("memory.max"), limited.read("pids.max")], ["603979776", "10"]);
        // Less, and at no moment without the grant.
        limited.folder.floor.store(201_326_592, Relaxed);
        limited.update(&engine, &json!({"memory": {"limit": 134_217_728}})).unwrap();
        assert_eq!(limited.read("memory.max"), "201326592");
        limited.update(&engine, &json!({"memory": {"limit": 536_870_912}})).unwrap();
        // How shares become a weight is the runtime's.
        limited.update(&engine, &json!({"cpu": {"shares": 512}})).unwrap();
        assert_eq!(limited.read("cpu.weight"), "70");
        assert_eq!(in_force(&engine), [("a".to_owned(), true)]);
        let before = limited.all();
        limited.folder.fails.store(true, Relaxed);
        let refused = limited.update(&engine, &json!({"memory": {"limit": -1}})).unwrap_err();
        assert!(matches!(refused, UpdateError::Runtime(_)));
        limited.folder.fails.store(false, Relaxed);
        assert_eq!((limited.all(), in_force(&engine)), (before, vec![("a".to_owned(), true)]));

        engine.detach("c", &id("a"), false).unwrap();
        assert_eq!([limited.read("memory.max"), limited.read("pids.max")], ["536870912", "10"]);
        assert_eq!(limited.read("cpu.weight"), "20");
    });
}

#[test]
fn privileged_what_cannot_be_limited_changes_nothing() {
    on_host(|dir| {
        let limited = Limited::start(dir);
        let (engine, before) = (limited.engine(), limited.all());
        fs::write(dir.join("group/inner/memory.current"), "8388608\n").unwrap();
        for (wanted, words) in [
            (
                change(&[("hugetlb.2MB.max", "2097152")], &[]),
                &["no hugetlb.2MB.max", "hugetlb controller"][..],
            ),
            (change(&[], &[("cpuset.cpus", "9")]), &["leaves no CPU", "0-3"]),
            (
                change(&[], &[("memory.max", "4194304")]),
                &["memory.max would become 4194304", "uses 8388608", "lazy"],
            ),
        ] {
            let refused = crate::engine::chain(&give(&engine, "a", wanted).unwrap_err());
            assert!(words.iter().all(|word| refused.contains(word)), "{refused}");
            assert_eq!(limited.read("memory.max"), "268435456");
        }
        limited.set("memory.current", "1048576");
        // The capsule cannot be put there, once limits are in force.
        let wanted = |target| Wanted {
            undoing: false,
            spec: Some(spec("a", content(dir, "1", &["f"]), target, Mode::Ro)),
            change: change(&[("memory.max", "67108864")], &[("pids.max", "20")]),
            devices: None,
        };
        engine.attach_all("c", &id("a"), wanted("/data")).unwrap_err();
        assert!(!limited.folder.told.lock().unwrap().is_empty(), "limits come first");
        assert_eq!((limited.all(), in_force(&engine)), (before.clone(), vec![]));
        limited.folder.fails.store(true, Relaxed);
        let failed = engine.attach_all("c", &id("a"), wanted("/opt/tz")).unwrap_err();
        assert!(matches!(failed, EngineError::Runtime(_)) && !limited.container.has("/opt/tz"));
        limited.folder.fails.store(false, Relaxed);
        assert_eq!((limited.all(), in_force(&engine)), (before, vec![]));
        let version_1 = LiveTask { cgroup: None, ..limited.container.live() };
        let legacy = Engine::new(Arc::new(One(version_1)), Kernel::known(LayersBy::Descriptor));
        let refused = give(&legacy, "a", change(&[("pids.max", "1")], &[])).unwrap_err();
        assert!(matches!(refused, EngineError::Limits(LimitError::NotUnified)));
    });
}

#[test]
fn privileged_a_grant_in_use_is_taken_lazily_only() {
    on_host(|dir| {
        let limited = Limited::start(dir);
        let engine = limited.engine();
        let wanted = Wanted {
            undoing: false,
            spec: Some(spec("a", content(dir, "1", &["f"]), "/opt/tz", Mode::Ro)),
            change: change(&[("memory.max", "67108864"), ("pids.max", "1")], &[]),
            devices: None,
        };
        engine.attach_all("c", &id("a"), wanted).unwrap();
        limited.set("memory.current", "300000000");
        let refused = engine.detach("c", &id("a"), false).unwrap_err();
        assert!(matches!(refused, EngineError::Limits(LimitError::InUse { limit: 268_435_456, .. })));
        assert_eq!(limited.container.read("/opt/tz/f").as_deref(), Some("1"));
        assert_eq!(
            (limited.read("memory.max"), in_force(&engine)),
            ("335544320".to_owned(), vec![("a".to_owned(), true)])
        );
        // In use in the other sense: all of it stays.
        limited.set("memory.current", "1048576");
        let user = limited.container.spawn("cd /opt/tz; echo ready; exec sleep 600");
        assert!(!engine.detach("c", &id("a"), false).unwrap().detached);
        assert_eq!(limited.read("memory.max"), "335544320");
        drop(user);
        limited.set("memory.current", "300000000");
        assert!(engine.detach("c", &id("a"), true).unwrap().detached);
        assert_eq!((limited.read("memory.max"), in_force(&engine)), ("268435456".to_owned(), vec![]));
    });
}

#[test]
fn privileged_a_replace_has_the_limits_of_what_is_there() {
    on_host(|dir| {
        let limited = Limited::start(dir);
        let engine = limited.engine();
        let wanted = Wanted {
            undoing: false,
            spec: Some(spec("a", content(dir, "1", &["f"]), "/opt/tz", Mode::Ro)),
            change: change(&[("memory.max", "1048576")], &[("pids.max", "20")]),
            devices: None,
        };
        engine.attach_all("c", &id("a"), wanted).unwrap();
        let more = change(&[("memory.max", "2097152"), ("cpu.weight", "1")], &[]);
        engine.replace_all("c", &id("a"), content(dir, "2", &["f"]), more.clone(), false).unwrap();
        let read = || ["memory.max", "pids.max", "cpu.weight"].map(|file| limited.read(file));
        assert_eq!(read(), ["270532608", "max", "101"]);
        let gone = Content { layers: vec![dir.join("nothing")], ..content(dir, "3", &["f"]) };
        engine
            .replace_all("c", &id("a"), gone, change(&[("pids.max", "3")], &[("pids.max", "9")]), false)
            .unwrap_err();
        assert_eq!(read(), ["270532608", "max", "101"]);
        assert_eq!(in_force(&engine), [("a".to_owned(), true)]);
        engine.replace("c", &id("a"), content(dir, "2", &["f"])).unwrap();
        assert_eq!((read(), in_force(&engine)), (["268435456", "max", "100"].map(str::to_owned), vec![]));
        engine.replace_all("c", &id("a"), content(dir, "2", &["f"]), more, false).unwrap();
        assert_eq!(engine.detach("c", &id("a"), false).unwrap(), super::gone());
        assert_eq!(read(), ["268435456", "max", "100"]);
    });
}

#[test]
fn privileged_what_somebody_else_sets_is_the_containers_own() {
    on_host(|dir| {
        let limited = Limited::start(dir);
        let engine = limited.engine();
        give(&engine, "a", change(&[("memory.max", "67108864")], &[("cpuset.cpus", "1")])).unwrap();
        limited.set("memory.max", "134217728");
        limited.set("cpuset.cpus", "0-1");
        assert_eq!(in_force(&engine), [("a".to_owned(), true)]);
        assert_eq!([limited.read("memory.max"), limited.read("cpuset.cpus")], ["201326592", "1"]);
        engine.detach("c", &id("a"), false).unwrap();
        assert_eq!([limited.read("memory.max"), limited.read("cpuset.cpus")], ["134217728", "0-1"]);
        // What cannot be put right is told.
        give(&engine, "a", change(&[("memory.max", "67108864")], &[])).unwrap();
        limited.folder.fails.store(true, Relaxed);
        limited.set("memory.max", "1048576");
        assert_eq!(in_force(&engine), [("a".to_owned(), false)]);
    });
}

#[test]
fn privileged_half_a_change_is_finished_or_undone() {
    on_host(|dir| {
        let limited = Limited::start(dir);
        let (engine, before) = (limited.engine(), limited.all());
        let wanted = change(&[("memory.max", "67108864")], &[("cpu.weight", "7"), ("cpuset.cpus", "1")]);
        give(&engine, "a", wanted.clone()).unwrap();
        let there = fs::read_to_string(limited.journal()).unwrap();
        for (state, effects) in
            [("attaching", true), ("attaching", false), ("detaching", true), ("detaching", false)]
        {
            let half = there.replace("\"attached\"", &format!("\"{state}\""));
            assert_ne!(half, there);
            fs::write(limited.journal(), half).unwrap();
            if !effects {
                // The shim died before it had done anything, or after all was undone.
                before.iter().for_each(|(file, value)| limited.set(file, value));
            }
            assert_eq!(in_force(&limited.engine()), [], "{state}");
            assert_eq!(limited.all(), before, "{state}");
            give(&engine, "a", wanted.clone()).unwrap();
        }
        // Its limits were to go with a capsule that did not.
        let spec = Some(spec("b", content(dir, "1", &["f"]), "/opt/tz", Mode::Ro));
        let wanted = Wanted {
            spec,
            change: change(&[("pids.max", "3")], &[("pids.max", "9")]),
            devices: None,
            undoing: false,
        };
        engine.attach_all("c", &id("b"), wanted).unwrap();
        let there = fs::read_to_string(limited.journal()).unwrap();
        let (head, limits) = there.split_once("\"limits\"").unwrap();
        let half = format!("{head}\"limits\"{}", limits.replace("\"attached\"", "\"detaching\""));
        fs::write(limited.journal(), half).unwrap();
        assert_eq!(in_force(&limited.engine()), [("b".to_owned(), true)]);
        assert_eq!(limited.read("pids.max"), "9");
        engine.detach("c", &id("b"), false).unwrap();
        assert_eq!(limited.all(), before);
        // A journal of before there were limits.
        let old = fs::read_to_string(limited.journal()).unwrap();
        let (head, _) = old.split_once(",\"limits\"").unwrap();
        fs::write(limited.journal(), format!("{head}}}")).unwrap();
        assert_eq!(in_force(&limited.engine()), []);
    });
}

/// Numbers of a fixed sequence.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

#[test]
fn privileged_any_sequence_leads_to_what_is_defined() {
    on_host(|dir| {
        let limited = Limited::start(dir);
        let (engine, mut dice) = (limited.engine(), Dice(7));
        let mut own =
            amounts(&[("memory.max", "268435456"), ("cpu.max", "50000 100000"), ("pids.max", "400")]);
        limited.set("pids.max", "400");
        let mut there: Vec<(u64, Change)> = Vec::new();
        for step in 0..400 {
            let number = dice.roll(6);
            match (dice.roll(3), there.iter().position(|(n, _)| *n == number)) {
                (0, _) => {
                    let (memory, pids) = ((1 + dice.roll(64)) << 22, 1 + dice.roll(500));
                    limited
                        .update(&engine, &json!({"memory": {"limit": memory}, "pids": {"limit": pids}}))
                        .unwrap();
                    own.extend(amounts(&[
                        ("memory.max", &memory.to_string()),
                        ("pids.max", &pids.to_string()),
                    ]));
                }
                (_, Some(at)) => {
                    engine.detach("c", &id(&number.to_string()), dice.roll(2) == 0).unwrap();
                    there.remove(at);
                }
                (_, None) => {
                    let all = [
                        ("memory.max", ((1 + dice.roll(64)) << 22).to_string()),
                        ("pids.max", (1 + dice.roll(500)).to_string()),
                        ("cpu.max", format!("{} 50000", 1000 + dice.roll(90_000))),
                    ];
                    let some = |dice: &mut Dice| -> Vec<(&str, &str)> {
                        let all = all.iter().map(|(file, value)| (*file, value.as_str()));
                        all.filter(|_| dice.roll(2) == 0).collect()
                    };
                    let new = change(&some(&mut dice), &some(&mut dice));
                    give(&engine, &number.to_string(), new.clone()).unwrap();
                    there.push((number, new));
                }
            }
            for (file, value) in effective(&own, there.iter().map(|(_, change)| change)).unwrap() {
                assert_eq!(limited.read(&file.to_string()), value.to_string(), "{file} after step {step}");
            }
        }
    });
}

#[test]
fn privileged_limits_keep_an_update_of_swap_beside_memory() {
    on_host(|dir| {
        let limited = Limited::start(dir);
        let engine = limited.engine();
        give(&engine, "a", change(&[("memory.max", "67108864")], &[])).unwrap();
        limited.update(&engine, &json!({"memory": {"limit": 314_572_800, "swap": 629_145_600}})).unwrap();
        assert_eq!([limited.read("memory.max"), limited.read("memory.swap.max")], ["381681664", "314572800"]);
        limited.update(&engine, &json!({"unified": {"memory.swap.max": "4096000"}})).unwrap();
        assert_eq!([limited.read("memory.max"), limited.read("memory.swap.max")], ["381681664", "4096000"]);
        engine.detach("c", &id("a"), false).unwrap();
        assert_eq!([limited.read("memory.max"), limited.read("memory.swap.max")], ["314572800", "4096000"]);
    });
}

#[test]
fn privileged_limits_take_no_memory_from_neighbours() {
    on_host(|dir| {
        let limited = Limited::start(dir);
        let (engine, before) = (limited.engine(), limited.all());
        fs::write(dir.join("group/memory.max"), "300000000\n").unwrap();
        let refused = give(&engine, "a", change(&[("memory.max", "67108864")], &[])).unwrap_err();
        assert!(
            matches!(refused, EngineError::Limits(LimitError::Above { wanted: 335_544_320, .. })),
            "{refused}"
        );
        assert_eq!((limited.all(), in_force(&engine)), (before, vec![]));
        give(&engine, "a", change(&[("memory.max", "31000000")], &[])).unwrap();
        assert_eq!(limited.read("memory.max"), "299435456");
    });
}

#[test]
fn privileged_limits_that_cannot_be_read_are_not_in_force_and_hide_nothing_else() {
    on_host(|dir| {
        let limited = Limited::start(dir);
        let engine = limited.engine();
        give(&engine, "a", change(&[], &[("pids.max", "20")])).unwrap();
        limited.set("pids.max", "many");
        assert_eq!(in_force(&engine), [("a".to_owned(), false)]);
        // It goes all the same, and what is to be put back is, once it can be.
        assert_eq!(engine.detach("c", &id("a"), true).unwrap(), gone());
        limited.set("pids.max", "20");
        assert_eq!(in_force(&engine), []);
        assert_eq!(limited.read("pids.max"), "max");
    });
}

#[test]
fn privileged_limits_are_undone_whatever_is_in_use() {
    on_host(|dir| {
        let limited = Limited::start(dir);
        let engine = limited.engine();
        let more = change(&[("memory.max", "67108864")], &[]);
        let (one, two) = (content(dir, "1", &["f"]), content(dir, "2", &["f"]));
        engine.attach("c", spec("a", one.clone(), "/opt", Mode::Ro)).unwrap();
        engine.replace_all("c", &id("a"), two, more, false).unwrap();
        limited.set("memory.current", "300000000");
        let back = |undoing| engine.replace_all("c", &id("a"), one.clone(), Change::default(), undoing);
        assert!(matches!(back(false).unwrap_err(), EngineError::Limits(LimitError::InUse { .. })));
        assert_eq!(limited.read("memory.max"), "335544320");
        back(true).unwrap();
        assert_eq!(limited.read("memory.max"), "268435456");
    });
}

#[test]
fn privileged_limits_that_cannot_be_put_back_are_left_until_they_can() {
    on_host(|dir| {
        let limited = Limited::start(dir);
        let engine = limited.engine();
        give(&engine, "a", change(&[], &[("pids.max", "20")])).unwrap();
        assert_eq!(
            (limited.read("pids.max"), engine.has_limits_left(Some("c")).unwrap()),
            ("20".into(), false)
        );
        let [file, aside] = ["pids.max", "aside"].map(|name| limited.folder.at.join(name));
        fs::rename(&file, &aside).unwrap();
        fs::create_dir(&file).unwrap();
        assert!(engine.detach("c", &id("a"), true).unwrap().detached);
        assert!(engine.has_limits_left(Some("c")).unwrap() && engine.has_limits_left(None).unwrap());
        // Another shim's, too: it is in the journal.
        let engine = limited.engine();
        assert!(engine.has_limits_left(Some("c")).unwrap());
        fs::remove_dir(&file).unwrap();
        fs::rename(&aside, &file).unwrap();
        assert!(!engine.has_limits_left(Some("c")).unwrap() && !engine.has_limits_left(None).unwrap());
        assert_eq!(limited.read("pids.max"), "max");
    });
}

#[test]
fn privileged_limits_of_a_kernel_with_bfq_are_its_weight() {
    on_host(|dir| {
        let limited = Limited::start(dir);
        limited.set("io.weight", "default 100");
        limited.set("io.bfq.weight", "100");
        let engine = limited.engine();
        let weight = |grant: &str| change(&[("io.weight", grant)], &[]);
        give(&engine, "a", weight("50")).unwrap();
        let both = || (limited.read("io.bfq.weight"), limited.read("io.weight"));
        assert_eq!(both(), ("150".into(), "default 100".into()));
        // A repeated call does it once, and BFQ's weights end at 1000.
        give(&engine, "a", weight("50")).unwrap();
        give(&engine, "b", weight("5000")).unwrap();
        assert_eq!(both().0, "1000");
        assert!(in_force(&engine).iter().all(|(_, in_force)| *in_force));
        engine.detach("c", &id("b"), false).unwrap();
        limited.update(&engine, &json!({"unified": {"io.bfq.weight": "40"}})).unwrap();
        assert_eq!(both(), ("90".into(), "default 100".into()));
        engine.detach("c", &id("a"), false).unwrap();
        assert_eq!(both(), ("40".into(), "default 100".into()));
    });
}
