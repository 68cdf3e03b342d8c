//! The line and column of a byte, as editors count them.

/// Returns the line and the column, from 1 and in characters, of the byte at `offset`, which may be past the end.
pub(super) fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = &text[..text.floor_char_boundary(offset)];
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters_from_one() {
        let text = "a\nüb\r\n";
        for (offset, expected) in
            [(0, (1, 1)), (1, (1, 2)), (2, (2, 1)), (3, (2, 1)), (4, (2, 2)), (7, (3, 1)), (99, (3, 1))]
        {
            assert_eq!(position(text, offset), expected, "at byte {offset}");
        }
        assert_eq!(position("", 0), (1, 1));
    }
}
