//! Which cores the executors are pinned to.

use super::fault::{Exit, Fault};

/// A list of cores, as in `0-3,6`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CoreList(pub(crate) Vec<usize>);

/// The most cores that a list may name.
const MAX_CORES: usize = 1024;

impl std::str::FromStr for CoreList {
    type Err = String;

    fn from_str(text: &str) -> Result<CoreList, String> {
        let wrong = |part: &str| format!("{part:?} is no core; write numbers and ranges, as in 0-3,6");
        let mut cores = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let first: usize = first.trim().parse().map_err(|_| wrong(part))?;
            let last: usize = last.trim().parse().map_err(|_| wrong(part))?;
            if last < first || last >= MAX_CORES {
                return Err(wrong(part));
            }
            for core in first..=last {
                if cores.contains(&core) {
                    return Err(format!("core {core} is named twice"));
                }
                cores.push(core);
            }
        }
        Ok(CoreList(cores))
    }
}

/// The cores to pin `lanes_in_all` lanes to: those asked for, or as many of the allowed ones as there are lanes.
pub(crate) fn choose(asked: Option<&CoreList>, lanes_in_all: usize) -> Result<Vec<usize>, Fault> {
    let allowed: Vec<usize> =
        core_affinity::get_core_ids().unwrap_or_default().into_iter().map(|core| core.id).collect();
    choose_from(&allowed, asked, lanes_in_all)
}

fn choose_from(
    allowed: &[usize],
    asked: Option<&CoreList>,
    lanes_in_all: usize,
) -> Result<Vec<usize>, Fault> {
    let Some(CoreList(cores)) = asked else {
        return Ok(allowed.iter().copied().take(lanes_in_all.max(1)).collect());
    };
    match cores.iter().find(|core| !allowed.contains(core)) {
        None => Ok(cores.clone()),
        Some(core) => Err(Fault::new(
            Exit::Usage,
            format!("core {core} is not among those this process may use ({allowed:?}); choose from these"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_cores_reads_numbers_and_ranges() {
        assert_eq!("0-2,5".parse(), Ok(CoreList(vec![0, 1, 2, 5])));
        for bad in ["", "a", "3-1", "1,1", "0-99999999999", "-1"] {
            assert!(bad.parse::<CoreList>().is_err(), "{bad}");
        }
    }

    #[test]
    fn cores_that_may_not_be_used_are_refused() {
        assert_eq!(choose_from(&[0, 2, 4], None, 2).unwrap(), [0, 2]);
        assert_eq!(choose_from(&[0, 2], Some(&CoreList(vec![2])), 9).unwrap(), [2]);
        assert!(choose_from(&[0, 2], Some(&CoreList(vec![1])), 1).is_err());
    }
}
