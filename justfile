# `just` lists what there is to run; everything works without just, too.

_default:
    @just --list

# what needs no server
test *ARGUMENTS:
    cargo test {{ ARGUMENTS }}

# all tests, with throw-away servers: `just servers --test databases -- postgres`
servers *ARGUMENTS:
    tests/run {{ ARGUMENTS }}

# production builds, and that no way of building makes tests blind
profiles:
    tests/profiles/run

lint:
    cargo fmt --check
    cargo clippy --all-features --all-targets -- -D warnings
    cargo clippy --lib --no-default-features -- -D warnings

# the library with one feature only: `just feature redis`
feature NAME:
    cargo clippy --lib --no-default-features --features {{ NAME }} -- -D warnings

# the documentation as docs.rs shows it
doc:
    RUSTDOC={{ justfile_directory() }}/.ci/rustdoc RUSTDOCFLAGS='--cfg docsrs -D warnings' cargo doc --no-deps --all-features

# licences, duplicates and sources of dependencies
deny:
    cargo deny --all-features check bans licenses sources

# all that has to hold for a change
ci:
    .ci/run

bench *SECTIONS:
    benches/run {{ SECTIONS }}

instructions:
    benches/instructions/run --check
