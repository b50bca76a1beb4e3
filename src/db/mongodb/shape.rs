//! The shape of a command: what it does to what, without any value.

use mongodb::bson::{Bson, Document};

/// The fields of a command that contain its filter; the first that exists is shown.
const FILTERS: [&str; 5] = ["filter", "query", "pipeline", "updates", "deletes"];

/// "find posts {author: ?, age: {$gt: ?}}": the name, the collection and the shape of the filter.
pub(super) fn of(name: &str, command: &Document) -> String {
    let mut text = name.to_owned();
    // `getMore` has the cursor's id in the place of the collection's name.
    let collection = command.get_str(name).or_else(|_| command.get_str("collection"));
    if let Ok(collection) = collection {
        text.push(' ');
        text.push_str(collection);
    }
    if let Some(filter) = FILTERS.iter().find_map(|field| command.get(field)) {
        text.push(' ');
        write(&mut text, filter);
    }
    text
}

fn write(text: &mut String, value: &Bson) {
    match value {
        Bson::Document(document) => {
            text.push('{');
            for (position, (field, value)) in document.iter().enumerate() {
                if position > 0 {
                    text.push_str(", ");
                }
                text.push_str(field);
                text.push_str(": ");
                write(text, value);
            }
            text.push('}');
        }
        // Lists of values are folded: `$in` with ten or twenty of them is the same question.
        Bson::Array(values) => {
            match values.iter().any(|value| matches!(value, Bson::Document(_))) {
                true => {
                    text.push('[');
                    for (position, value) in values.iter().enumerate() {
                        if position > 0 {
                            text.push_str(", ");
                        }
                        write(text, value);
                    }
                    text.push(']');
                }
                false => text.push_str("[?]"),
            }
        }
        _ => text.push('?'),
    }
}

#[cfg(test)]
mod tests {
    use mongodb::bson::doc;

    use super::*;

    #[test]
    fn values_never_show() {
        let find = doc! { "find": "posts", "filter": { "author": "eve", "age": { "$gt": 7 } }, "limit": 3 };
        assert_eq!(of("find", &find), "find posts {author: ?, age: {$gt: ?}}");
        let more = doc! { "getMore": 17_i64, "collection": "posts" };
        assert_eq!(of("getMore", &more), "getMore posts");
        let update = doc! { "update": "posts", "updates": [{ "q": { "_id": 1 }, "u": { "$set": { "n": 2 } } }] };
        assert_eq!(of("update", &update), "update posts [{q: {_id: ?}, u: {$set: {n: ?}}}]");
    }

    #[test]
    fn lists_of_values_are_folded() {
        let find = |ids: &[i32]| {
            of("find", &doc! { "find": "posts", "filter": { "_id": { "$in": ids } } })
        };
        assert_eq!(find(&[1, 2]), find(&[3, 4, 5]));
        assert_eq!(find(&[1]), "find posts {_id: {$in: [?]}}");
    }
}
