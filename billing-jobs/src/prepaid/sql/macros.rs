//! The macros of the statements: each writes what differs between the two databases.

/// The text with every macro replaced.
pub(super) fn expanded(text: &str, sqlite: bool) -> String {
    let mut text = text.to_owned();
    // The last macro has no other one among its arguments.
    while let Some(bang) = text.rfind("!(") {
        let begin = text[..bang].rfind(|c: char| !c.is_ascii_alphabetic()).map_or(0, |before| before + 1);
        let end = closing(&text, bang + 1);
        let written = written(&text[begin..bang], &text[bang + 2..end], sqlite);
        text.replace_range(begin..=end, &written);
    }
    text
}

/// Where the parenthesis that opens at `open` is closed.
fn closing(text: &str, open: usize) -> usize {
    let mut depth = 0;
    let closed = text[open..].find(|c| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        depth == 0
    });
    open + closed.expect("a parenthesis that opens is closed")
}

fn written(name: &str, argument: &str, sqlite: bool) -> String {
    match (name, sqlite) {
        ("ids", true) => format!("SELECT value AS id FROM json_each({argument})"),
        ("ids", false) => {
            format!("SELECT value::uuid AS id FROM jsonb_array_elements_text({argument}::jsonb)")
        }
        ("list", true) => format!("json_group_array(json_array({argument}))"),
        ("list", false) => format!("jsonb_agg(jsonb_build_array({argument}))"),
        // A number of microseconds from now.
        ("later", true) => format!("{{present}} + {argument}"),
        ("later", false) => format!("{{present}} + {argument} * interval '1 microsecond'"),
        ("rows", _) => rows(argument, sqlite),
        ("values", _) => values(argument, sqlite),
        (_, true) => format!("({argument})"),
        ("micros", false) => format!("(extract(epoch FROM {argument}) * 1000000)::bigint"),
        ("instant", false) => format!("(timestamptz 'epoch' + ({argument}) * interval '1 microsecond')"),
        ("id", false) => format!("{argument}::uuid"),
        ("text", false) => format!("({argument})::text"),
        ("number", false) => format!("({argument})::bigint"),
        ("flag", false) => format!("({argument})::integer"),
        _ => panic!("no macro is called `{name}`"),
    }
}

/// The columns of rows, each with its type.
fn columns(argument: &str) -> Vec<(&str, &str)> {
    let columns = argument.split(',').map(|column| column.trim().split_once(' '));
    columns.map(|column| column.expect("a column has a type")).collect()
}

/// What an INSERT of the rows in $1, a JSON array of objects, writes.
fn rows(argument: &str, sqlite: bool) -> String {
    let names: Vec<&str> = columns(argument).iter().map(|(name, _)| *name).collect();
    format!("({})\n{}", names.join(", "), values(argument, sqlite))
}

/// A query of the rows in $1.
fn values(argument: &str, sqlite: bool) -> String {
    let columns = columns(argument);
    if sqlite {
        let values = columns.iter().map(|(name, _)| format!("value ->> '{name}' AS {name}"));
        let values = values.collect::<Vec<_>>().join(", ");
        // Without a condition, the ON of a conflict would be read as that of a join.
        return format!("SELECT {values} FROM json_each($1) WHERE true");
    }
    let mut values = Vec::new();
    let mut types = Vec::new();
    for (name, kind) in columns {
        let (value, of) = match kind {
            "instant" => (written("instant", name, false), "bigint"),
            "id" => (name.to_owned(), "uuid"),
            "flag" => (name.to_owned(), "boolean"),
            "number" => (name.to_owned(), "bigint"),
            "small" => (name.to_owned(), "integer"),
            "text" => (name.to_owned(), "text"),
            _ => panic!("no column has the type `{kind}`"),
        };
        values.push(format!("{value} AS {name}"));
        types.push(format!("{name} {of}"));
    }
    let (values, types) = (values.join(", "), types.join(", "));
    format!("SELECT {values} FROM jsonb_to_recordset($1::jsonb) AS d ({types})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macros_are_written_for_each_database() {
        for (text, sqlite, postgres) in [
            ("a = id!($1)", "a = ($1)", "a = $1::uuid"),
            (
                "text!(list!(micros!(b), f(c)))",
                "(json_group_array(json_array((b), f(c))))",
                "(jsonb_agg(jsonb_build_array((extract(epoch FROM b) * 1000000)::bigint, f(c))))::text",
            ),
            (
                "rows!(a id, b instant)",
                "(a, b)\nSELECT value ->> 'a' AS a, value ->> 'b' AS b FROM json_each($1) WHERE true",
                "(a, b)\nSELECT a AS a, (timestamptz 'epoch' + (b) * interval '1 microsecond') AS b \
              FROM jsonb_to_recordset($1::jsonb) AS d (a uuid, b bigint)",
            ),
        ] {
            assert_eq!((expanded(text, true).as_str(), expanded(text, false).as_str()), (sqlite, postgres));
        }
    }
}
