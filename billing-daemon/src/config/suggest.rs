//! Suggests the known word for a mistyped one.

/// Returns the one of `known` that is closest to `word`, if one is close.
pub(crate) fn closest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let typed = word.to_lowercase();
    let distance = |known: &str| strsim::osa_distance(&typed, &known.to_lowercase());
    let (distance, closest) =
        known.into_iter().map(|known| (distance(known), known)).min_by_key(|(distance, _)| *distance)?;
    // A third of the letters may be wrong, at least one.
    (distance <= (closest.chars().count() / 3).max(1)).then_some(closest)
}

/// Returns `did you mean `x`?` with the word of [`closest`].
pub(crate) fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    closest(word, known).map(|closest| format!("did you mean `{closest}`?"))
}

/// Returns the suggestion of [`did_you_mean`], or else all of `known`.
pub(super) fn one_of<'a>(word: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> String {
    did_you_mean(word, known.clone()).unwrap_or_else(|| {
        let known: Vec<_> = known.into_iter().map(|known| format!("`{known}`")).collect();
        if known.is_empty() { "there are none".to_owned() } else { format!("known: {}", known.join(", ")) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_close_words_are_suggested() {
        let known = ["schedule", "scope", "run-at-start", "Europe/Berlin"];
        for (word, expected) in [
            ("scedule", Some("schedule")),
            ("shcedule", Some("schedule")),
            ("scop", Some("scope")),
            ("run_at_start", Some("run-at-start")),
            ("europe/berlin", Some("Europe/Berlin")),
            ("banana", None),
            ("", None),
        ] {
            let expected = expected.map(|word| format!("did you mean `{word}`?"));
            assert_eq!(did_you_mean(word, known), expected, "{word}");
        }
    }
}
