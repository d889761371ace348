//! Uneven pipeline stages and recomputation in the formats of trainers.

use crate::row::Draft;
use crate::settings::{Field, Settings};
use autodist_spec::{InputError, Recompute};

/// The recomputation policy for all blocks, for trainers with one policy: the plan's, on all blocks even if
/// the plan has it on only some, which needs less memory and more time. A trainer without `selective`
/// recomputes whole blocks.
pub fn uniform_recompute(settings: &Settings, draft: &mut Draft, selective: bool) -> Recompute {
    let most = settings.recompute.iter().copied().max().unwrap_or_default();
    if most == Recompute::Selective && !selective {
        draft.instead(Field::Recompute, "every block uses full recomputation: less memory, more time");
        return Recompute::Full;
    }
    if settings.recompute.iter().any(|r| *r != most) {
        draft.instead(
            Field::Recompute,
            format!(
                "{} on every block, because it cannot be set for single blocks: less memory, more time",
                most.name()
            ),
        );
    }
    most
}

/// The number of first blocks of every chunk that are fully recomputed, if it is the same for all chunks.
pub fn leading_full(settings: &Settings) -> Option<u32> {
    let mut blocks = settings.recompute.iter();
    let mut leading = None;
    for count in &settings.stages {
        let chunk: Vec<_> = blocks.by_ref().take(*count as usize).collect();
        let full = chunk.iter().take_while(|r| ***r == Recompute::Full).count();
        let rest = chunk[full..].iter().all(|r| **r == Recompute::None);
        if !rest || leading.is_some_and(|leading| leading != full) {
            return None;
        }
        leading = Some(full);
    }
    leading.map(|count| count as u32)
}

/// Megatron's `--pipeline-model-parallel-layout`: E the embedding, t a block, L the head, | between chunks.
pub fn layout(blocks: &[u32]) -> String {
    let chunk = |(index, count): (usize, &u32)| {
        let mut parts = Vec::new();
        if index == 0 {
            parts.push("E".to_owned());
        }
        match count {
            0 => {}
            1 => parts.push("t".to_owned()),
            count => parts.push(format!("t*{count}")),
        }
        if index + 1 == blocks.len() {
            parts.push("L".to_owned());
        }
        parts.join(",")
    };
    blocks.iter().enumerate().map(chunk).collect::<Vec<_>>().join("|")
}

/// Blocks per chunk of a layout: `E`, `t`, `L` and `|`, ignored commas, `(…)*n` and `x*n` for n repetitions.
///
/// # Errors
/// If it contains anything else.
pub fn blocks_of_layout(text: &str) -> Result<Vec<u32>, InputError> {
    let wrong = |problem: &str| {
        InputError::new("pipeline-model-parallel-layout", text, problem)
            .hint("write E for the embedding, t for a block, L for the head, | between stages: Et*7|t*9,L")
    };
    let flat = expand(&text.chars().filter(|c| !c.is_whitespace()).collect::<Vec<_>>(), 0)
        .ok_or_else(|| wrong("has brackets or a factor that cannot be parsed"))?;
    if flat.chars().any(|c| !"EtL|".contains(c)) {
        return Err(wrong("contains layers that plans do not support"));
    }
    let inner = flat.strip_prefix('E').and_then(|rest| rest.strip_suffix('L'));
    match inner.filter(|inner| !inner.contains(['E', 'L'])) {
        Some(inner) => Ok(inner.split('|').map(|chunk| chunk.len() as u32).collect()),
        None => Err(wrong("must start with the only embedding, E, and end with the only head, L")),
    }
}

/// Upper limit of repetitions; larger factors are mistakes.
const LONGEST: usize = 1 << 16;

fn expand(text: &[char], depth: usize) -> Option<String> {
    let mut flat = String::new();
    let mut at = 0;
    while at < text.len() {
        let unit = match text[at] {
            ',' => {
                at += 1;
                continue;
            }
            '(' => {
                let mut level = 0;
                let close = text[at..].iter().position(|c| {
                    level += i32::from(*c == '(') - i32::from(*c == ')');
                    level == 0
                })?;
                if depth > 8 {
                    return None;
                }
                let inner = expand(&text[at + 1..at + close], depth + 1)?;
                at += close + 1;
                inner
            }
            ')' | '*' => return None,
            letter => {
                at += 1;
                letter.to_string()
            }
        };
        let mut times = 1;
        if text.get(at) == Some(&'*') {
            let digits: String = text[at + 1..].iter().take_while(|c| c.is_ascii_digit()).collect();
            times = digits.parse().ok()?;
            at += 1 + digits.len();
        }
        if flat.len().saturating_add(unit.len().saturating_mul(times)) > LONGEST {
            return None;
        }
        flat += &unit.repeat(times);
    }
    Some(flat)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_read_back() {
        assert_eq!(layout(&[7, 0, 1, 8]), "E,t*7||t|t*8,L");
        for blocks in [vec![7, 9, 9, 7], vec![0, 3], vec![4], vec![1, 1, 2, 0]] {
            assert_eq!(blocks_of_layout(&layout(&blocks)).unwrap(), blocks);
        }
        assert_eq!(blocks_of_layout("Et*7|(t*9|)*2,t*7,L").unwrap(), [7, 9, 9, 7]);
        for bad in ["Et*|L", "(E", "E)t", "Ex|L", "Et*99999999|L"] {
            assert!(blocks_of_layout(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn leading_blocks_are_the_same_in_every_chunk() {
        use Recompute::{Full, None, Selective};
        let of = |stages: &[u32], recompute: &[Recompute]| {
            leading_full(&Settings {
                stages: stages.to_vec(),
                recompute: recompute.to_vec(),
                ..Settings::default()
            })
        };
        assert_eq!(of(&[2, 2], &[Full, None, Full, None]), Some(1));
        assert_eq!(of(&[2, 2], &[Full, None, None, Full]), Option::None);
        assert_eq!(of(&[2, 2], &[Full, Full, Full, None]), Option::None);
        assert_eq!(of(&[2], &[Selective, None]), Option::None);
        assert_eq!(of(&[2], &[None, None]), Some(0));
    }
}
