//! The parameters of the prepaid policy.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use super::{
    rules::{Mode, Rules, micros},
    window::{Window, WindowParams},
};

/// The parameters of kind `prepaid`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct PrepaidParams {
    /// `watch` evaluates and records what would be sent, `notify` sends notices, `enforce` also suspends and resumes.
    pub mode: Mode,
    /// The hours of runway at which customers are notified, the highest first.
    #[serde(deserialize_with = "notice_hours")]
    #[schemars(length(min = 1), inner(range(min = 1, max = 720)))]
    pub notice_hours: Vec<u16>,
    /// How long an exhausted wallet is tolerated while billing works, from `1h` to `30d`.
    #[serde(deserialize_with = "grace", serialize_with = "billing_scheduler::duration::serialize")]
    #[schemars(with = "String", regex(pattern = billing_scheduler::duration::PATTERN))]
    pub grace: Duration,
    /// The hours of runway with which a suspended organization is resumed.
    pub resume_hours: std::num::NonZeroU16,
    /// What becomes of the hours of suspended instances: `owe`, they are due as all others.
    pub while_suspended: WhileSuspended,
    /// Rejected with an explanation: a limit of what is owed needs waivers.
    #[serde(skip_serializing, deserialize_with = "not_available")]
    #[schemars(skip)]
    pub owe_at_most: (),
    /// The hours of the day in which notices of two hours and more wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<WindowParams>")]
    pub quiet: Option<Window>,
    /// The hours in which instances may be suspended; at any time by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<WindowParams>")]
    pub suspend_window: Option<Window>,
}

/// What becomes of the hours of suspended instances.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WhileSuspended {
    /// They are due, as those of other instances.
    #[default]
    Owe,
}

impl<'de> Deserialize<'de> for WhileSuspended {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "owe" => Ok(Self::Owe),
            "waive" => {
                Err(D::Error::custom("`waive` is not available: this version has no waivers; use `owe`"))
            }
            _ => Err(D::Error::custom("is not `owe`")),
        }
    }
}

impl Default for PrepaidParams {
    fn default() -> Self {
        Self {
            mode: Mode::Watch,
            notice_hours: vec![72, 24, 1],
            grace: Duration::from_hours(24),
            resume_hours: std::num::NonZeroU16::MIN,
            while_suspended: WhileSuspended::Owe,
            owe_at_most: (),
            quiet: None,
            suspend_window: None,
        }
    }
}

impl PrepaidParams {
    /// The rules that these parameters set.
    #[must_use]
    pub fn rules(&self) -> Rules {
        let mut rules = Rules::new(&self.notice_hours, micros(self.grace), self.resume_hours.get().into());
        rules.quiet.clone_from(&self.quiet);
        rules.window.clone_from(&self.suspend_window);
        rules
    }
}

fn notice_hours<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u16>, D::Error> {
    let hours = Vec::<u16>::deserialize(deserializer)?;
    let is_valid = !hours.is_empty()
        && hours.iter().all(|hours| (1..=720).contains(hours))
        && hours.is_sorted_by(|one, next| one > next);
    if is_valid {
        return Ok(hours);
    }
    Err(D::Error::custom(
        "is not a list of hours from 720 to 1, each less than the one before, such as [72, 24, 1]",
    ))
}

fn not_available<'de, D: Deserializer<'de>>(_: D) -> Result<(), D::Error> {
    Err(D::Error::custom(
        "is not available: this version has no waivers, so suspended instances owe their hours",
    ))
}

fn grace<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let grace = billing_scheduler::duration::deserialize(deserializer)?;
    if (Duration::from_hours(1)..=Duration::from_hours(720)).contains(&grace) {
        return Ok(grace);
    }
    Err(D::Error::custom("is not a duration from 1h to 30d"))
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    #[test]
    fn parameters_reject_unusable_values() {
        let params = |params| from_value::<PrepaidParams>(params).map_err(|error| error.to_string());
        assert_eq!(params(json!({})), Ok(PrepaidParams::default()));
        assert_eq!(
            params(json!({ "notice-hours": [720, 1], "grace": "1h", "resume-hours": 3, "while-suspended": "owe" }))
                .map(|params| params.rules().recovered_hours),
            Ok(900)
        );
        for invalid in [
            json!({ "notice-hours": [] }),
            json!({ "notice-hours": [24, 72] }),
            json!({ "notice-hours": [24, 24] }),
            json!({ "notice-hours": [721] }),
            json!({ "notice-hours": [1, 0] }),
            json!({ "grace": "59m" }),
            json!({ "grace": "31d" }),
            json!({ "resume-hours": 0 }),
            json!({ "while-suspended": "waive" }),
            json!({ "while-suspended": "free" }),
            json!({ "owe-at-most": "72h" }),
            json!({ "mode": "enforced" }),
            json!({ "quiet": { "from": "22:00", "until": "22:00", "timezone": "UTC" } }),
            json!({ "suspend-window": { "from": "09:00", "until": "17:00", "timezone": "Mars/Olympus" } }),
        ] {
            params(invalid.clone()).expect_err(&invalid.to_string());
        }
    }
}
