//! The mapping tables of docs/trainers.md match the code.

#[test]
fn the_documentation_has_the_tables_of_the_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/trainers.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (_, tables) = text.split_once("<!-- made from the code -->\n").unwrap();
    assert_eq!(
        tables.trim(),
        autodist_exporters::mapping().trim(),
        "make it again: cargo run -p autodist-exporters --example mapping"
    );
}
