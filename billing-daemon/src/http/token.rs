//! The token that a request from another host must have.

use axum::http::{HeaderMap, header};
use billing_kinds::Secret;
use subtle::ConstantTimeEq as _;

/// A shorter token could be guessed.
const MIN_LENGTH: usize = 16;

/// The expected token of `Authorization: Bearer TOKEN`.
pub(crate) struct Token(String);

impl Token {
    /// Reads the token from its file or environment variable.
    ///
    /// # Errors
    /// It cannot be read, or no header can contain it, or it is too short.
    pub(crate) fn read(source: &Secret) -> Result<Self, String> {
        let token = source.read().map_err(|error| error.to_string())?;
        if token.len() < MIN_LENGTH || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!(
                "{source:?} must have at least {MIN_LENGTH} characters, all of them visible ASCII"
            ));
        }
        Ok(Self(token))
    }

    /// Returns the token, to be masked in every output.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }

    /// Whether a request with `headers` has the token. The time does not depend on how much of it is right.
    pub(super) fn is_in(&self, headers: &HeaderMap) -> bool {
        let mut given = headers.get_all(header::AUTHORIZATION).iter();
        let (Some(given), None) = (given.next(), given.next()) else { return false };
        let Some((scheme, token)) = given.to_str().ok().and_then(|given| given.split_once(' ')) else {
            return false;
        };
        scheme.eq_ignore_ascii_case("bearer") && bool::from(token.trim().as_bytes().ct_eq(self.0.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    #[test]
    fn unsafe_tokens_are_rejected() {
        for (text, accepted) in [
            (TOKEN, true),
            ("0123456789abcde", false),
            ("0123456789 abcdef", false),
            ("0123456789abcdeü", false),
        ] {
            assert_eq!(Token::read(&Secret::Text(text.to_owned())).is_ok(), accepted, "{text}");
        }
    }

    #[test]
    fn only_exact_token_is_accepted() {
        let token = Token(TOKEN.to_owned());
        for (given, accepted) in [
            (vec!["Bearer 0123456789abcdef"], true),
            (vec!["bearer  0123456789abcdef"], true),
            (vec!["Bearer 0123456789abcdeF"], false),
            (vec!["Bearer 0123456789abcde"], false),
            (vec!["Bearer 0123456789abcdef0"], false),
            (vec!["Basic 0123456789abcdef"], false),
            (vec!["0123456789abcdef"], false),
            (vec!["Bearer"], false),
            (vec![], false),
            (vec!["Bearer 0123456789abcdef", "Bearer 0123456789abcdef"], false),
        ] {
            let mut headers = HeaderMap::new();
            for value in &given {
                headers.append(header::AUTHORIZATION, value.parse().expect("a header"));
            }
            assert_eq!(token.is_in(&headers), accepted, "{given:?}");
        }
    }
}
