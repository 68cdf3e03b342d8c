//! Where in a text a byte stands, as an editor counts.

/// The line and the column, from 1 and in characters, of the byte at `offset`. Past the end is the end.
pub(super) fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = &text[..text.floor_char_boundary(offset)];
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_columns_count_from_one_and_in_characters() {
        let text = "a\nüb\r\n";
        for (offset, expected) in
            [(0, (1, 1)), (1, (1, 2)), (2, (2, 1)), (3, (2, 1)), (4, (2, 2)), (7, (3, 1)), (99, (3, 1))]
        {
            assert_eq!(position(text, offset), expected, "at byte {offset}");
        }
        assert_eq!(position("", 0), (1, 1));
    }
}
