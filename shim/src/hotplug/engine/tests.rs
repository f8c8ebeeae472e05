//! The engine on the real kernel.

mod container;
mod denied;
mod devices;
mod limits;
mod writable;

use std::{fs, path::Path};

use overlayfs_utils::{ContainerPath, LayersBy};
use rustix::io::Errno;

use self::container::{Container, One, on_host, pidfd};
use super::*;
use crate::{
    hotplug::{
        LiveTask,
        edits::Edits,
        journal::State,
        model::{Content, Mode, Spec},
    },
    limits::Change,
};

/// Parts of what the engine does.
impl Engine {
    fn attach(&self, container: &str, spec: Spec) -> Result<Attached, EngineError> {
        let (id, spec) = (spec.id.clone(), Some(spec));
        Ok(self.attach_all(container, &id, Wanted { spec, ..Wanted::default() })?.unwrap())
    }

    fn attach_devices(
        &self,
        container: &str,
        id: &AttachmentId,
        edits: Edits,
        spec: Option<Spec>,
    ) -> Result<Option<Attached>, EngineError> {
        self.attach_all(container, id, Wanted { spec, devices: Some(edits), ..Wanted::default() })
    }

    fn replace(
        &self,
        container: &str,
        id: &AttachmentId,
        content: Content,
    ) -> Result<(Attached, Content), EngineError> {
        self.replace_all(container, id, content, Change::default(), false)
    }
}

fn content(dir: &Path, version: &str, files: &[&str]) -> Content {
    let layer = dir.join("layers").join(version);
    fs::create_dir_all(&layer).unwrap();
    for file in files {
        let path = layer.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, version).unwrap();
    }
    let layers = vec![layer.to_string_lossy().into_owned()];
    Content::new("tz".into(), version.into(), "sha256:0".into(), layers).unwrap()
}

fn spec(id: &str, content: Content, target: &str, mode: Mode) -> Spec {
    let target = ContainerPath::parse(target).unwrap();
    Spec::new(AttachmentId::parse(id.into()).unwrap(), content, target, mode).unwrap()
}

fn id(id: &str) -> AttachmentId {
    AttachmentId::parse(id.into()).unwrap()
}

fn gone() -> Detached {
    Detached { detached: true, users: Vec::new() }
}

#[test]
fn privileged_a_capsule_comes_changes_and_goes_without_a_trace() {
    on_host(|dir| {
        let container = Container::start(dir, "");
        let engine = container.engine();
        let (mounts, tree) = (container.mounts(), container.tree());
        let first = spec("a", content(dir, "1", &["UTC", "old"]), "/usr/share/zoneinfo", Mode::Ro);
        let attached = engine.attach("c", first.clone()).unwrap();
        assert!(attached.mounted);
        assert_eq!(container.read("/usr/share/zoneinfo/UTC").as_deref(), Some("1"));
        // Again: the same is a success, anything else a conflict.
        assert_eq!(engine.attach("c", first.clone()).unwrap(), attached);
        let other = spec("a", content(dir, "1", &["UTC"]), "/opt", Mode::Ro);
        assert!(matches!(engine.attach("c", other), Err(EngineError::Conflict(_))));
        let second = content(dir, "2", &["UTC"]);
        let (now, replaced) = engine.replace("c", &id("a"), second.clone()).unwrap();
        assert!(now.mounted && replaced == first.content && now.record.spec.content == second);
        assert_eq!(container.read("/usr/share/zoneinfo/UTC").as_deref(), Some("2"));
        assert_eq!(container.read("/usr/share/zoneinfo/old"), None);
        let (list, draining) = engine.list(None).unwrap();
        assert_eq!((list, draining), (vec![now], vec![]));
        assert_eq!(engine.detach("c", &id("a"), false).unwrap(), gone());
        assert_eq!(engine.detach("c", &id("a"), false).unwrap(), gone());
        assert_eq!((container.mounts(), container.tree()), (mounts, tree));
        assert_eq!(engine.list(Some("c")).unwrap(), (vec![], vec![]));
        let error = engine.replace("c", &id("a"), second).unwrap_err();
        assert!(matches!(error, EngineError::NoAttachment(_)));
        assert!(matches!(engine.list(Some("d")), Err(EngineError::Task(TaskLookupError::NotFound(_)))));
    });
}

#[test]
fn privileged_a_union_at_the_root_hides_nothing_and_follows_its_content() {
    on_host(|dir| {
        let container = Container::start(dir, "");
        let engine = container.engine();
        let (mounts, tree) = (container.mounts(), container.tree());
        let zones = spec("tz", content(dir, "1", &["UTC"]), "/usr/share/zoneinfo", Mode::Ro);
        engine.attach("c", zones).unwrap();
        let tools =
            content(dir, "tools-1", &["usr/bin/strace", "usr/share/doc/strace", "opt/strace/x", "usr/lib/a"]);
        let attached = engine.attach("c", spec("tools", tools, "/", Mode::Union)).unwrap();
        let points: Vec<_> = attached.record.mounts.iter().map(|m| m.path.as_str()).collect();
        assert_eq!(points, ["/opt", "/usr/bin", "/usr/lib", "/usr/share/doc"]);
        for (path, text) in [
            ("/usr/bin/strace", "tools-1"),
            ("/usr/share/doc/strace", "tools-1"),
            ("/lib/a", "tools-1"),
            ("/opt/strace/x", "tools-1"),
            ("/usr/share/keep/file", "image"),
            ("/usr/share/zoneinfo/UTC", "1"),
        ] {
            assert_eq!(container.read(path).as_deref(), Some(text), "{path}");
        }
        // The next version has another set of hierarchies: /opt and /usr/lib go, /srv comes.
        let next = content(dir, "tools-2", &["usr/bin/strace", "usr/share/doc/strace", "srv/new"]);
        let (now, _) = engine.replace("c", &id("tools"), next).unwrap();
        let points: Vec<_> = now.record.mounts.iter().map(|m| m.path.as_str()).collect();
        assert_eq!(points, ["/srv", "/usr/bin", "/usr/share/doc"]);
        assert!(
            now.mounted && container.read("/opt/strace/x").is_none() && container.read("/lib/a").is_none()
        );
        assert_eq!(container.read("/usr/bin/strace").as_deref(), Some("tools-2"));
        assert_eq!(container.read("/srv/new").as_deref(), Some("tools-2"));
        for id in ["tz", "tools"].map(id) {
            assert_eq!(engine.detach("c", &id, false).unwrap(), gone());
        }
        assert_eq!((container.mounts(), container.tree()), (mounts, tree));
    });
}

#[test]
fn privileged_directories_made_for_one_attachment_go_with_the_last_that_needs_them() {
    on_host(|dir| {
        let container = Container::start(dir, "");
        let engine = container.engine();
        let tree = container.tree();
        for (name, target) in [("a", "/srv/deep/one"), ("b", "/srv/deep/two"), ("c", "/srv/three")] {
            engine.attach("c", spec(name, content(dir, "1", &["f"]), target, Mode::Ro)).unwrap();
        }
        for name in ["a", "c", "b"] {
            assert_ne!(container.tree(), tree);
            assert_eq!(engine.detach("c", &id(name), false).unwrap(), gone());
        }
        assert_eq!(container.tree(), tree);
    });
}

#[test]
fn privileged_the_service_answers_on_a_socket_of_roots_own() {
    use std::os::unix::fs::PermissionsExt;

    use capsule_proto::hotplug as wire;
    on_host(|dir| {
        let container = Container::start(dir, "");
        let socket = dir.join("s/hotplug.sock");
        let layer = content(dir, "1", &["f"]).layers.remove(0).to_string_lossy().into_owned();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let _serving =
                crate::hotplug::serve(Arc::new(One(container.live())), Arc::new(Reaper::idle()), &socket)
                    .await
                    .unwrap();
            assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
            let address = format!("unix://{}", socket.display());
            let client = wire::HotplugClient::new(ttrpc::r#async::Client::connect(&address).await.unwrap());
            let content = wire::Content {
                capsule: "tz".into(),
                version: "1".into(),
                layers: vec![layer],
                ..Default::default()
            };
            let mut request = wire::AttachRequest {
                container_id: "c".into(),
                attachment_id: "a".into(),
                content: Some(content).into(),
                target: "/usr/lib".into(),
                ..Default::default()
            };
            let context = ttrpc::context::with_timeout(0);
            let attached = client.attach(context.clone(), &request).await.unwrap().attachment.unwrap();
            assert_eq!((attached.mount_points, attached.mounted), (vec!["/usr/lib".to_owned()], true));
            assert_eq!(container.read("/usr/lib/f").as_deref(), Some("1"));
            request.container_id = "d".into();
            match client.attach(context.clone(), &request).await.unwrap_err() {
                ttrpc::Error::RpcStatus(status) => assert_eq!(status.code(), ttrpc::Code::NOT_FOUND),
                other => panic!("{other}"),
            }
            let list = client.list(context.clone(), &wire::ListRequest::new()).await.unwrap();
            assert_eq!(list.attachments.len(), 1);
            let detach = wire::DetachRequest {
                container_id: "c".into(),
                attachment_id: "a".into(),
                ..Default::default()
            };
            assert!(client.detach(context.clone(), &detach).await.unwrap().detached);
            // Asked for, and so said: an older shim would say nothing of it.
            assert!(!attached.writable);
            request.container_id = "c".into();
            request.upper.mut_or_insert_default().set_directory(dir.to_string_lossy().into_owned());
            let attached = client.attach(context, &request).await.unwrap().attachment.unwrap();
            assert!(attached.writable);
        });
    });
}

#[test]
fn privileged_a_container_may_take_no_capsules() {
    on_host(|dir| {
        let container = Container::start(dir, "");
        let live = LiveTask { takes_capsules: false, ..container.live() };
        let engine = Engine::new(Arc::new(One(live)), Kernel::known(LayersBy::Descriptor));
        let tree = container.tree();
        let refused = engine.attach("c", spec("a", content(dir, "1", &["f"]), "/usr/lib", Mode::Ro));
        assert!(matches!(refused, Err(EngineError::Disabled(id)) if id == "c"));
        assert_eq!(container.tree(), tree);
    });
}

/// The container stands for one that was given the number of an init that has been reaped, and not yet reported.
#[test]
fn privileged_a_container_with_the_number_of_an_ended_init_is_not_entered() {
    on_host(|dir| {
        let container = Container::start(dir, "");
        let (mounts, tree) = (container.mounts(), container.tree());
        let mut init = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let ended = LiveTask { init: pidfd(&init), ..container.live() };
        init.kill().unwrap();
        init.wait().unwrap();
        let engine = Engine::new(Arc::new(One(ended)), Kernel::known(LayersBy::Descriptor));
        let refused = engine.attach("c", spec("a", content(dir, "1", &["f"]), "/usr/lib", Mode::Ro));
        let stopped = TaskLookupError::NotRunning { id: "c".to_owned(), state: "stopped".to_owned() };
        assert!(matches!(refused, Err(EngineError::Task(error)) if error == stopped));
        assert_eq!((container.mounts(), container.tree()), (mounts, tree));
    });
}

#[test]
fn privileged_a_union_keeps_what_the_container_wrote() {
    on_host(|dir| {
        let container = Container::start(dir, "");
        container.run("echo mine > /usr/share/keep/mine");
        let seen =
            || ["file", "sub/new", "mine"].map(|f| container.read(&format!("/usr/share/keep/{f}")).unwrap());
        for by in LayersBy::ALL {
            let engine = container.engine_by(by);
            let over = content(dir, "1", &["file", "sub/new"]);
            engine.attach("c", spec("a", over, "/usr/share/keep", Mode::Union)).unwrap();
            assert_eq!(seen(), ["1", "1", "mine\n"], "{by:?}");
            // An upgrade takes the container's own directory as its lower, not the union that is there.
            let (now, _) = engine.replace("c", &id("a"), content(dir, "2", &["sub/new"])).unwrap();
            assert!(now.mounted);
            assert_eq!(seen(), ["image", "2", "mine\n"], "{by:?}");
            assert_eq!(engine.detach("c", &id("a"), false).unwrap(), gone());
        }
    });
}

#[test]
fn privileged_what_cannot_be_is_refused_and_nothing_changes() {
    on_host(|dir| {
        let container = Container::start(dir, "");
        let engine = container.engine();
        engine.attach("c", spec("first", content(dir, "1", &["UTC", "sub/x"]), "/opt/tz", Mode::Ro)).unwrap();
        let (mounts, tree) = (container.mounts(), container.tree());
        let mut incomplete = content(dir, "gone", &["x"]);
        incomplete.layers = vec![dir.join("layers/nowhere")];
        let some = || content(dir, "2", &["x", "sub/y"]);
        for (content, target, mode, word) in [
            (some(), "/data", Mode::Ro, "tmpfs mount of \"volume\""),
            (some(), "/data", Mode::Union, "tmpfs mount of \"volume\""),
            (some(), "/data/sub", Mode::Union, "use mode ro"),
            (some(), "/opt/tz", Mode::Ro, "attachment first (tz@1)"),
            (some(), "/opt/tz", Mode::Union, "attachment first (tz@1)"),
            (some(), "/opt", Mode::Ro, "/opt/tz is occupied by attachment first"),
            (some(), "/opt/tz/sub", Mode::Union, "attachment first"),
            (some(), "/opt/tz/new", Mode::Ro, "read-only"),
            (some(), "/bin/busybox", Mode::Ro, "not a directory"),
            (some(), "/bin/busybox/x", Mode::Ro, "not a directory"),
            (some(), "/etc/x", Mode::Ro, "link"),
            (some(), "/etc/x/tmp/new", Mode::Ro, "link"),
            (some(), "/proc", Mode::Ro, "procfs"),
            (some(), "/proc/sys", Mode::Ro, "procfs"),
            (some(), "/", Mode::Union, "/x, which is no directory"),
            (incomplete, "/srv", Mode::Ro, "incomplete"),
        ] {
            let error = engine.attach("c", spec("second", content, target, mode)).unwrap_err();
            assert!(error.to_string().contains(word), "{target} {mode:?}: {error:?} lacks {word:?}");
            assert_eq!((container.mounts(), container.tree()), (mounts.clone(), tree.clone()), "{target}");
        }
        let outer =
            engine.attach("c", spec("nest", content(dir, "3", &["z"]), "/opt/tz/sub", Mode::Ro)).unwrap();
        assert!(outer.mounted);
        for error in [
            engine.detach("c", &id("first"), false).unwrap_err(),
            engine.detach("c", &id("first"), true).unwrap_err(),
            engine.replace("c", &id("first"), some()).unwrap_err(),
        ] {
            assert!(error.to_string().contains("attachment nest (tz@3)"), "{error}");
        }
    });
}

#[test]
fn privileged_a_read_only_root_takes_capsules_only_where_directories_are() {
    on_host(|dir| {
        let container = Container::start(dir, "mount -o remount,bind,ro /");
        let engine = container.engine();
        let mounts = container.mounts();
        let capsule = || content(dir, "1", &["usr/bin/new", "srv/x"]);
        for (target, mode) in [("/srv/deep", Mode::Ro), ("/", Mode::Union)] {
            let error = engine.attach("c", spec("a", capsule(), target, mode)).unwrap_err();
            assert!(error.to_string().contains("read-only"), "{error}");
        }
        assert_eq!(container.mounts(), mounts, "/usr/bin would have been first");
        engine.attach("c", spec("a", capsule(), "/usr/lib", Mode::Ro)).unwrap();
        assert_eq!(engine.detach("c", &id("a"), false).unwrap(), gone());
    });
}

#[test]
fn privileged_a_target_through_a_link_is_recorded_as_the_place_it_means() {
    on_host(|dir| {
        let container = Container::start(dir, "");
        let engine = container.engine();
        for (target, place) in [("/lib/zone", "/usr/lib/zone"), ("/etc/up", "/usr/lib"), ("/lib", "/usr/lib")]
        {
            let attached =
                engine.attach("c", spec("a", content(dir, "1", &["f"]), target, Mode::Ro)).unwrap();
            assert_eq!(attached.record.mounts[0].path.as_str(), place);
            assert_eq!(container.read(&format!("{place}/f")).as_deref(), Some("1"));
            assert_eq!(engine.detach("c", &id("a"), false).unwrap(), gone());
        }
    });
}

#[test]
fn privileged_a_used_capsule_stays_unless_lazy_and_drains_until_it_is_let_go() {
    on_host(|dir| {
        let container = Container::start(dir, "");
        let engine = container.engine();
        let tools = content(dir, "1", &["usr/lib/x", "etc/y"]);
        engine.attach("c", spec("a", tools.clone(), "/", Mode::Union)).unwrap();
        let before = container.mounts();
        // The user holds the mount that is attached first, so the other one is taken before the kernel says busy.
        let user = container.spawn("exec 7</etc/y; echo ready; exec sleep 600");
        let refused = engine.detach("c", &id("a"), false).unwrap();
        assert!(!refused.detached);
        let [named] = &refused.users[..] else { panic!("{:?}", refused.users) };
        assert_eq!((named.pid, named.how.to_string()), (i32::try_from(user.0.id()).unwrap(), "fd 7".into()));
        assert!(named.path.ends_with("etc/y"), "{named:?}");
        assert_eq!(container.mounts().len(), before.len());
        let (list, _) = engine.list(Some("c")).unwrap();
        assert!(list[0].mounted, "all mounts are back, and the journal knows their ids");
        assert_eq!(container.read("/usr/lib/x").as_deref(), Some("1"));
        // Replaced: the old version drains. Detached lazily: so does the new one, if used.
        engine.replace("c", &id("a"), content(dir, "2", &["usr/lib/x", "etc/y"])).unwrap();
        let (_, draining) = engine.list(Some("c")).unwrap();
        assert_eq!(draining.len(), 1);
        assert_eq!(draining[0].draining.content, tools);
        assert_eq!(draining[0].users.len(), 1, "{draining:?}");
        assert_eq!(engine.detach("c", &id("a"), true).unwrap().users.len(), 1);
        drop(user);
        assert_eq!(engine.list(Some("c")).unwrap(), (vec![], vec![]));
        assert!(!container.has("/usr/lib/x") && !container.has("/etc/y"));
    });
}

#[test]
fn privileged_links_swapped_while_attaching_lead_nowhere_else() {
    on_host(|dir| {
        let outside = dir.join("outside/deep");
        fs::create_dir_all(&outside).unwrap();
        let container = Container::start(dir, "");
        container.run("mkdir -p /spin/real/deep && ln -s ../../../../outside /spin/link");
        let engine = container.engine();
        let before = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let loops =
            "cd /spin; echo ready; while :; do mv real tmp; mv link real; mv real link; mv tmp real; done";
        let spinning = container.spawn(loops);
        let capsule = content(dir, "1", &["f"]);
        let mut attached = 0;
        for _ in 0..100 {
            match engine.attach("c", spec("a", capsule.clone(), "/spin/real/deep", Mode::Ro)) {
                Ok(_) => attached += 1,
                Err(EngineError::Conflict(_) | EngineError::Raced(_) | EngineError::Target(_)) => {}
                Err(error) => panic!("{error:?}"),
            }
            let _ = engine.detach("c", &id("a"), true);
            assert_eq!(fs::read_to_string("/proc/thread-self/mountinfo").unwrap(), before);
            assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        }
        drop(spinning);
        // While the container spins, a detach may have given up: it says so, and the attachment is still known.
        engine.detach("c", &id("a"), true).unwrap();
        let left: Vec<_> = container.mounts().into_iter().filter(|m| m.contains("capsule:tz")).collect();
        assert!(left.is_empty(), "after {attached} attaches: {left:?}");
    });
}

#[test]
fn privileged_a_container_in_a_user_namespace_is_no_different() {
    on_host(|dir| {
        let container = Container::start_in_user_namespace(dir);
        let engine = container.engine();
        let mounts = container.mounts();
        let version = |v| content(dir, v, &["usr/share/keep/file", "usr/new"]);
        engine.attach("c", spec("a", version("1"), "/", Mode::Union)).unwrap();
        engine.attach("c", spec("b", content(dir, "3", &["f"]), "/srv/b", Mode::Ro)).unwrap();
        let (now, _) = engine.replace("c", &id("a"), version("2")).unwrap();
        assert!(now.mounted);
        for (path, text) in [("/usr/new", "2"), ("/usr/share/keep/file", "2"), ("/srv/b/f", "3")] {
            assert_eq!(container.read(path).as_deref(), Some(text), "{path}");
        }
        for id in ["a", "b"].map(id) {
            assert_eq!(engine.detach("c", &id, false).unwrap(), gone());
        }
        assert_eq!(container.mounts(), mounts);
    });
}

#[test]
fn privileged_a_replace_that_fails_half_way_is_undone() {
    on_host(|dir| {
        let container = Container::start(dir, "");
        let engine = container.engine();
        let versions = ["1", "2"].map(|v| content(dir, v, &["etc/y", "usr/lib/x"]));
        engine.attach("c", spec("a", versions[0].clone(), "/", Mode::Union)).unwrap();
        // The container covers the second of the two mounts and uncovers it, as fast as it can.
        let cover = "echo ready; while :; do mount -o bind /data /usr; umount /usr; done 2>/data/log";
        let spinning = container.spawn(cover);
        let (mut now, mut failed) = (0, 0);
        for _ in 0..150 {
            match engine.replace("c", &id("a"), versions[1 - now].clone()) {
                Ok(_) => now = 1 - now,
                Err(EngineError::Covered { .. } | EngineError::Raced(_) | EngineError::Mount(_)) => {
                    failed += 1
                }
                Err(error) => panic!("{error:?}"),
            }
            assert_eq!(
                container.read("/etc/y"),
                Some(versions[now].version.clone()),
                "after {failed} failures"
            );
            assert_eq!(engine.list(Some("c")).unwrap().0[0].record.spec.content, versions[now]);
        }
        drop(spinning);
        // The loop may have ended in between.
        let _ = container.spawn("umount /usr 2>/data/log; echo ready").0.wait();
        assert!(failed > 0, "the container never covered the mount");
    });
}

#[test]
fn privileged_what_was_left_half_done_is_finished_or_undone() {
    on_host(|dir| {
        let container = Container::start(dir, "");
        let engine = container.engine();
        let mounts = container.mounts();
        let capsule = || content(dir, "1", &["usr/lib/x", "etc/y"]);
        let cut_off = |state: State, lose: usize| {
            let attached = engine.attach("c", spec("a", capsule(), "/", Mode::Union)).unwrap();
            engine
                .with_scene("c", |scene| {
                    let mut record = attached.record.clone();
                    record.state = state;
                    for mounted in record.mounts.iter().take(lose) {
                        container.run(&format!("umount {}", mounted.path));
                    }
                    scene.journal.put(record);
                    scene.write_journal()
                })
                .unwrap();
        };
        cut_off(State::Attaching, 0);
        assert!(engine.list(Some("c")).unwrap().0[0].mounted, "all was done: it stays");
        assert_eq!(engine.detach("c", &id("a"), false).unwrap(), gone());
        for state in [State::Attaching, State::Detaching] {
            cut_off(state, 1);
            assert_eq!(engine.list(Some("c")).unwrap(), (vec![], vec![]));
            assert_eq!(container.mounts(), mounts);
        }
        let mut never = engine.attach("c", spec("b", capsule(), "/opt/b", Mode::Ro)).unwrap().record.mounts;
        assert_eq!(engine.detach("c", &id("b"), false).unwrap(), gone());
        never[0].path = ContainerPath::parse("/etc").unwrap();
        cut_off(State::Replacing { content: content(dir, "2", &["etc/y"]), mounts: never }, 0);
        let (list, _) = engine.list(Some("c")).unwrap();
        assert_eq!(
            (list[0].record.state.clone(), list[0].record.spec.content.clone()),
            (State::Attached, capsule())
        );
    });
}

#[test]
fn privileged_a_container_that_has_ended_has_nothing() {
    on_host(|dir| {
        let mut container = Container::start(dir, "");
        let engine = container.engine();
        let capsule = content(dir, "1", &["f"]);
        engine.attach("c", spec("a", capsule.clone(), "/opt", Mode::Ro)).unwrap();
        container.init.kill().unwrap();
        container.init.wait().unwrap();
        assert_eq!(engine.list(Some("c")).unwrap(), (vec![], vec![]));
        assert_eq!(engine.list(None).unwrap(), (vec![], vec![]));
        assert_eq!(engine.detach("c", &id("a"), false).unwrap(), gone());
        let error = engine.attach("c", spec("b", capsule, "/opt", Mode::Ro)).unwrap_err();
        assert!(error.to_string().contains("\"c\" is stopped, not running"), "{error:?}");
    });
}

#[test]
fn an_init_that_ends_during_a_call_is_a_container_that_does_not_run() {
    let text = |error| as_not_running("c", error).to_string();
    let expected = "container \"c\" is stopped, not running: start it, then repeat the call";
    let enter = |errno| EngineError::Namespace(NamespaceError::Enter(errno));
    assert_eq!(text(enter(Errno::SRCH)), expected);
    assert_eq!(text(EngineError::Pin(PinError::Ended(7))), expected);
    assert!(text(enter(Errno::PERM)).contains("setns"));
}

#[test]
fn privileged_calls_in_one_container_wait_for_each_other() {
    on_host(|dir| {
        let container = Container::start(dir, "");
        let engine = container.engine();
        let capsule = content(dir, "1", &["f"]);
        std::thread::scope(|scope| {
            for n in 0..8 {
                let (engine, capsule) = (&engine, capsule.clone());
                scope.spawn(move || {
                    let name = format!("a{n}");
                    let target = format!("/opt/{n}");
                    assert!(engine.attach("c", spec(&name, capsule, &target, Mode::Ro)).unwrap().mounted);
                });
            }
        });
        assert_eq!(engine.list(Some("c")).unwrap().0.len(), 8);
    });
}

/// Not a test: `cargo test --profile fast -p containerd-shim-capsule-v1 -- --ignored --nocapture bench_` as root.
#[test]
#[ignore = "a measurement"]
fn bench_engine_calls() {
    on_host(|dir| {
        let container = Container::start(dir, "");
        let engine = container.engine();
        let versions = ["1", "2"].map(|v| content(dir, v, &["f"]));
        let mut times: [Vec<std::time::Duration>; 3] = Default::default();
        for _ in 0..1_000 {
            let began = std::time::Instant::now();
            engine.attach("c", spec("a", versions[0].clone(), "/usr/lib", Mode::Ro)).unwrap();
            times[0].push(began.elapsed());
            let began = std::time::Instant::now();
            engine.replace("c", &id("a"), versions[1].clone()).unwrap();
            times[1].push(began.elapsed());
            let began = std::time::Instant::now();
            assert_eq!(engine.detach("c", &id("a"), false).unwrap(), gone());
            times[2].push(began.elapsed());
        }
        for (what, mut times) in ["attach", "replace", "detach"].into_iter().zip(times) {
            times.sort();
            eprintln!(
                "{what:8} p50 {:>9.1?} p99 {:>9.1?}",
                times[times.len() / 2],
                times[times.len() * 99 / 100]
            );
        }
    });
}
