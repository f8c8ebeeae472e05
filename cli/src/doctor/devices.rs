//! Devices: what CDI specs give, and a GPU that none describes.

use std::path::Path;

use super::Finding;
use super::capsuled::{Answer, Capsuled};
use crate::host::Settings;

/// There where NVIDIA's driver is loaded.
const NVIDIA: &str = "/proc/driver/nvidia/version";

/// What capsuled has read of the specs, and whether an NVIDIA device is missing there.
pub fn examine(capsuled: &Capsuled, settings: &Settings) -> Vec<Finding> {
    let answer = capsuled.answer.as_ref().ok();
    let mut findings = vec![judge_specs(answer, settings)];
    findings.extend(judge_nvidia(answer, Path::new(NVIDIA).exists()));
    findings
}

fn judge_specs(answer: Option<&Answer>, settings: &Settings) -> Finding {
    const CHECK: &str = "devices";
    let dirs = settings.spec_dirs.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", ");
    let Some(answer) = answer else {
        return Finding::skipped(
            CHECK,
            format!("capsuled, which reads the CDI specs of {dirs}, was not asked"),
        );
    };
    match answer.problems.as_slice() {
        [] => {
            let plural = if answer.devices.len() == 1 { "device" } else { "devices" };
            Finding::ok(CHECK, format!("{} {plural} in the CDI specs of {dirs}", answer.devices.len()))
        }
        [(path, reason), more @ ..] => {
            let more = if more.is_empty() { String::new() } else { format!(" (and {} more)", more.len()) };
            let advice = "correct or remove it; `capsulectl devices` lists all that is wrong";
            Finding::warning(CHECK, format!("{path} is not used: {reason}{more}"), advice)
        }
    }
}

/// Nothing where there is no such device.
fn judge_nvidia(answer: Option<&Answer>, has_driver: bool) -> Option<Finding> {
    const CHECK: &str = "nvidia";
    let answer = answer.filter(|_| has_driver)?;
    let count = answer.devices.iter().filter(|name| name.starts_with("nvidia.com/")).count();
    Some(match count {
        0 => Finding::warning(
            CHECK,
            "NVIDIA's driver is loaded, and no CDI spec describes its devices",
            "`nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml` (docs/devices.md)",
        ),
        count => Finding::ok(CHECK, format!("{count} of the devices are NVIDIA's")),
    })
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn specs_are_as_capsuled_reads_them() {
        let settings = Settings::read("/no/such/file".as_ref());
        assert_eq!(judge_specs(None, &settings).state, State::Skipped);
        let mut answer = Answer { devices: vec!["a.com/b=c".into()], ..Answer::default() };
        let good = judge_specs(Some(&answer), &settings);
        assert_eq!(
            (good.state, good.found.as_str()),
            (State::Ok, "1 device in the CDI specs of /etc/cdi, /var/run/cdi")
        );
        answer.problems = vec![("/etc/cdi/a.json".into(), "no JSON".into()), ("/b".into(), "x".into())];
        let bad = judge_specs(Some(&answer), &settings);
        assert_eq!(
            (bad.state, bad.found.as_str()),
            (State::Warning, "/etc/cdi/a.json is not used: no JSON (and 1 more)")
        );
    }

    #[test]
    fn a_gpu_without_a_spec_is_told_and_no_gpu_is_not() {
        let none = Answer::default();
        assert!(judge_nvidia(Some(&none), false).is_none() && judge_nvidia(None, true).is_none());
        assert_eq!(judge_nvidia(Some(&none), true).unwrap().state, State::Warning);
        let some = Answer { devices: vec!["nvidia.com/gpu=0".into()], ..Answer::default() };
        assert_eq!(judge_nvidia(Some(&some), true).unwrap().state, State::Ok);
    }
}
