//! Whatever is seen late, and in whichever order: what was written is removed when its claim is gone and its class says so, and not before;
//! and in the end nothing is left that is nobody's.

use proptest::prelude::*;
use serde_json::json;

use super::world::World;
use crate::storage::SELECTED_NODE;

#[derive(Clone, Copy, Debug)]
enum Op {
    Claim(usize),
    Select(usize, usize),
    Write(usize),
    Unmount(usize),
    DeleteClaim(usize),
    DeleteVolume(usize),
    Kubernetes,
    SeeClaims,
    SeeVolumes,
    SeeNodes,
    Pass,
    Agent(usize),
    Full(usize),
    Restart,
}

const CLAIMS: usize = 3;

/// The last has a class whose volumes are retained.
fn class(claim: usize) -> &'static str {
    if claim == CLAIMS - 1 { "kept" } else { "fast" }
}

fn op() -> impl Strategy<Value = Op> {
    let (claim, node) = (0..CLAIMS, 0..2_usize);
    prop_oneof![
        2 => claim.clone().prop_map(Op::Claim),
        3 => (claim.clone(), node.clone()).prop_map(|(claim, node)| Op::Select(claim, node)),
        4 => claim.clone().prop_map(Op::Write),
        2 => claim.clone().prop_map(Op::Unmount),
        1 => claim.clone().prop_map(Op::DeleteClaim),
        1 => claim.prop_map(Op::DeleteVolume),
        6 => Just(Op::Kubernetes),
        5 => Just(Op::SeeClaims),
        5 => Just(Op::SeeVolumes),
        5 => Just(Op::SeeNodes),
        9 => Just(Op::Pass),
        8 => node.clone().prop_map(Op::Agent),
        1 => node.prop_map(Op::Full),
        1 => Just(Op::Restart),
    ]
}

/// Claims that were made, and those that were deleted: a uid is never used twice.
#[derive(Default)]
struct Lives {
    made: [u32; CLAIMS],
    kept: Vec<String>,
}

impl Lives {
    fn uid(&self, claim: usize) -> String {
        format!("{claim}x{}", self.made[claim])
    }

    fn step(&mut self, op: Op, world: &mut World) {
        match op {
            Op::Claim(claim) if !world.now.claims.contains_key(&self.uid(claim)) => {
                self.made[claim] += 1;
                world.claim(&self.uid(claim), class(claim), "ReadWriteOnce", None);
            }
            Op::Select(claim, node) => {
                let uid = self.uid(claim);
                let is_free = world.now.claims.get(&uid).is_some_and(|one| {
                    one["spec"]["volumeName"].is_null()
                        && one["metadata"]["annotations"][SELECTED_NODE].is_null()
                });
                if is_free {
                    world.set(
                        &uid,
                        &json!({ "metadata": { "annotations": { SELECTED_NODE: format!("n{node}") } } }),
                    );
                }
            }
            Op::Write(claim) => self.mount(claim, world),
            Op::Unmount(claim) => {
                let id = format!("shop/pvc-{}", self.uid(claim));
                world.disks.iter_mut().filter(|((_, of), _)| *of == id).for_each(|(_, disk)| disk.mounts = 0);
            }
            // Pods hold it while they use it.
            Op::DeleteClaim(claim) => {
                let id = format!("shop/pvc-{}", self.uid(claim));
                if !world.disks.iter().any(|((_, of), disk)| *of == id && disk.mounts > 0) {
                    world.now.claims.remove(&self.uid(claim));
                }
            }
            Op::DeleteVolume(claim) => {
                let name = format!("pvc-{}", self.uid(claim));
                // Kubernetes holds it while a claim has it.
                if world.now.volumes.contains_key(&name) && !world.now.claims.contains_key(&self.uid(claim)) {
                    world.delete(&name, None);
                }
            }
            Op::Kubernetes => world.kubernetes(),
            Op::SeeClaims => world.seen.claims.clone_from(&world.now.claims),
            Op::SeeVolumes => world.seen.volumes.clone_from(&world.now.volumes),
            Op::SeeNodes => world.seen.nodes.clone_from(&world.now.nodes),
            Op::Pass => world.pass(),
            Op::Agent(node) => world.agent(&format!("n{node}")),
            Op::Full(node) => {
                let name = format!("n{node}");
                if !world.full.remove(&name) {
                    world.full.insert(name);
                }
            }
            Op::Restart => {
                world.before.clear();
                world.see();
            }
            Op::Claim(_) => {}
        }
        self.check(world);
    }

    /// A pod writes, once its claim has a volume; where there is none on its node, that is what is not to be.
    fn mount(&mut self, claim: usize, world: &mut World) {
        let uid = self.uid(claim);
        let Some(name) =
            world.now.claims.get(&uid).and_then(|one| one["spec"]["volumeName"].as_str().map(str::to_owned))
        else {
            return;
        };
        let volume = world.volume(&name);
        let key = (volume.node.unwrap().to_string(), volume.handle.to_string());
        let disk = world.disks.get_mut(&key).expect("what is bound is on its node");
        (disk.mounts, disk.written) = (1, true);
        if class(claim) == "kept" {
            self.kept.push(key.1);
        }
    }

    fn check(&self, world: &World) {
        for (id, disk) in &world.removed {
            let uid = id.trim_start_matches("shop/pvc-");
            assert!(disk.mounts == 0, "{id} was removed while it was mounted");
            assert!(!self.kept.contains(id), "{id} is retained");
            assert!(!disk.written || !world.now.claims.contains_key(uid), "{id} has a claim");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn what_was_written_is_safe(ops in prop::collection::vec(op(), 1..150)) {
        let mut world = World::new();
        world.class("kept", "WaitForFirstConsumer", json!({}));
        world.classes.get_mut("kept").unwrap().reclaim_policy = Some("Retain".to_owned());
        let mut lives = Lives::default();
        for op in ops {
            lives.step(op, &mut world);
        }
        world.disks.values_mut().for_each(|disk| disk.mounts = 0);
        world.full.clear();
        // The scheduler chooses again where a node was given up.
        for _ in 0..3 {
            for claim in 0..CLAIMS {
                lives.step(Op::Select(claim, 0), &mut world);
            }
            world.settle();
        }
        lives.check(&world);
        // All that is selected is bound, and nothing is told any more.
        for (uid, claim) in &world.now.claims {
            prop_assert_eq!(&claim["spec"]["volumeName"], &json!(format!("pvc-{uid}")));
        }
        prop_assert!(world.now.nodes.values().all(|node| node.spec.volumes.is_empty()));
        for (node, id) in world.disks.keys() {
            let uid = id.trim_start_matches("shop/pvc-");
            let has_claim = world.now.claims.contains_key(uid);
            let is_kept = uid.starts_with(&(CLAIMS - 1).to_string());
            prop_assert!(has_claim || is_kept, "{} on {} is nobody's", id, node);
        }
    }
}
