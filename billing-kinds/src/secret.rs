//! A text that may be a secret, or the place to read it from.

use std::{
    borrow::Cow,
    env, fmt, io,
    path::{Path, PathBuf},
};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};

use crate::input_file;

/// A text, or the place to read it from. `Debug` does not print the text.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// The text itself.
    Text(String),
    /// The name of a variable in this process's environment.
    Env(String),
    /// The path of a regular file of at most 1 MiB, which is read without its last line break.
    File(PathBuf),
    /// The name of a credential that systemd passes to the service: a file of `$CREDENTIALS_DIRECTORY`, read as other files.
    Credential(String),
}

/// The variable in which systemd passes the folder of the credentials of a service.
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

/// Why a secret cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The variable is not set, or is not UTF-8.
    #[error("cannot read environment variable `{0}`: set it and restart")]
    Env(String),
    /// The service manager passed no credentials.
    #[error(
        "cannot read credential `{0}`: {CREDENTIALS} is not set; use `LoadCredential=` in the unit of the service"
    )]
    Credential(String),
    /// The file does not exist, cannot be read, or is not UTF-8.
    #[error("cannot read {}: {source}", path.display())]
    File {
        /// The path of the file.
        path: PathBuf,
        /// The error of the file system.
        source: io::Error,
    },
}

impl Secret {
    /// The credential with this name.
    ///
    /// # Errors
    /// The name could leave the folder of the credentials.
    pub fn credential(name: &str) -> Result<Self, &'static str> {
        if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) {
            return Err("`credential` is not a valid name");
        }
        Ok(Self::Credential(name.to_owned()))
    }

    /// Returns the current text.
    pub fn read(&self) -> Result<String, SecretError> {
        match self {
            Self::Text(text) => Ok(text.clone()),
            Self::Env(name) => env::var(name).map_err(|_| SecretError::Env(name.clone())),
            Self::File(path) => read_line(path),
            Self::Credential(name) => {
                let folder = env::var_os(CREDENTIALS).ok_or_else(|| SecretError::Credential(name.clone()))?;
                read_line(&Path::new(&folder).join(name))
            }
        }
    }
}

/// The text of a file without its last line break.
fn read_line(path: &Path) -> Result<String, SecretError> {
    let text =
        input_file::read_text(path).map_err(|source| SecretError::File { path: path.to_owned(), source })?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    Ok(line.strip_suffix('\r').unwrap_or(line).to_owned())
}

impl Secret {
    /// Whether the configuration contains the text itself.
    pub(crate) fn is_text(&self) -> bool {
        matches!(self, Self::Text(_))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) => f.write_str("***"),
            Self::Env(name) => write!(f, "${name}"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Credential(name) => write!(f, "credential {name}"),
        }
    }
}

impl JsonSchema for Secret {
    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let source = |key: &str, description: &str| {
            json_schema!({
                "type": "object",
                "properties": { key: { "type": "string", "description": description } },
                "required": [key],
                "additionalProperties": false,
            })
        };
        json_schema!({
            "description": "A text, or the place to read it from. It is never printed.",
            "anyOf": [
                { "type": "string" },
                source("env", "A variable of the daemon's environment."),
                source("file", "A file, without its last line break."),
                source("credential", "A credential of the systemd service, without its last line break."),
            ],
        })
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        /// Returns an error without the value, which may be the secret.
        fn not_text<E: de::Error>(expected: &dyn de::Expected) -> E {
            E::invalid_type(de::Unexpected::Other("a number or a boolean"), expected)
        }

        #[derive(Deserialize)]
        #[serde(rename_all = "kebab-case")]
        enum Source {
            Env(String),
            File(PathBuf),
            Credential(String),
        }

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Secret;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text, { env = \"NAME\" }, { file = \"/path\" } or { credential = \"name\" }")
            }

            fn visit_bool<E: de::Error>(self, _: bool) -> Result<Secret, E> {
                Err(not_text(&self))
            }

            fn visit_i64<E: de::Error>(self, _: i64) -> Result<Secret, E> {
                Err(not_text(&self))
            }

            fn visit_u64<E: de::Error>(self, _: u64) -> Result<Secret, E> {
                Err(not_text(&self))
            }

            fn visit_f64<E: de::Error>(self, _: f64) -> Result<Secret, E> {
                Err(not_text(&self))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Secret, E> {
                Ok(Secret::Text(text.to_owned()))
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Secret, A::Error> {
                let source = Source::deserialize(de::value::MapAccessDeserializer::new(map));
                match source.map_err(|_| de::Error::invalid_type(de::Unexpected::Map, &self))? {
                    Source::Env(name) if name.is_empty() || name.contains(['=', '\0']) => {
                        Err(de::Error::custom("`env` is not a valid variable name"))
                    }
                    Source::File(path) if path.as_os_str().is_empty() => {
                        Err(de::Error::custom("`file` is empty"))
                    }
                    Source::Credential(name) => Secret::credential(&name).map_err(de::Error::custom),
                    Source::Env(name) => Ok(Secret::Env(name)),
                    Source::File(path) => Ok(Secret::File(path)),
                }
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}
