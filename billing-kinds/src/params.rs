//! Parameters as editors are told of them.

use billing_scheduler::duration;
use schemars::{Schema, SchemaGenerator, json_schema};

/// A duration, to an editor.
pub(crate) fn duration_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "pattern": duration::PATTERN })
}
