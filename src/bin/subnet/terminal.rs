//! What a tool says to its user: results on stdout, usage errors of the command line as one line.

use std::io::{self, ErrorKind, Write};

use super::fault::{Exit, Fault};

/// Prints a result. A reader that has gone away is no fault: it has seen what it wanted.
pub(crate) fn say(text: &str) -> Result<(), Fault> {
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Fault::new(Exit::Io, format!("stdout: cannot be written: {error}"))),
        Ok(()) => Ok(()),
    }
}

/// Parses the command line. `Ok(None)` when help or the version was asked for and has been printed.
pub(crate) fn parse<C: clap::Parser>() -> Result<Option<C>, Fault> {
    use clap::error::ErrorKind::{DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion};
    match C::try_parse() {
        Ok(command) => Ok(Some(command)),
        Err(error) => match error.kind() {
            DisplayHelp | DisplayVersion | DisplayHelpOnMissingArgumentOrSubcommand => {
                say(error.render().to_string().trim_end()).map(|()| None)
            }
            _ => Err(usage(&error.render().to_string())),
        },
    }
}

/// clap's paragraphs as one line: the error, its tip, and where the help is.
fn usage(rendered: &str) -> Fault {
    let mut paragraphs = rendered
        .split("\n\n")
        .map(|paragraph| paragraph.split_whitespace().collect::<Vec<_>>().join(" ").replace("error: ", ""));
    let what = paragraphs.next().unwrap_or_default();
    let mut line = what;
    let mut help = "--help".to_owned();
    for paragraph in paragraphs {
        if let Some(tip) = paragraph.strip_prefix("tip: ") {
            line = format!("{line}; {tip}");
        } else if let Some(usage) = paragraph.strip_prefix("Usage: ") {
            let words =
                usage.split(' ').take_while(|word| word.chars().all(|c| c.is_ascii_lowercase() || c == '-'));
            let command: Vec<&str> = words.take_while(|word| !word.starts_with('-')).collect();
            help = format!("`{} --help`", command.join(" "));
        }
    }
    Fault::new(Exit::Usage, format!("{line}; {help} says what is allowed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_usage_error_becomes_one_line_with_its_tip() {
        let text = "error: unexpected argument '--noodes' found\n\n  tip: a similar argument exists: '--nodes'\n\n\
                    Usage: corecast devnet --nodes <N>\n\nFor more information, try '--help'.\n";
        assert_eq!(
            usage(text).to_string(),
            "unexpected argument '--noodes' found; a similar argument exists: '--nodes'; \
             `corecast devnet --help` says what is allowed"
        );
    }

    #[test]
    fn missing_arguments_are_named_on_the_line() {
        let text = "error: the following required arguments were not provided:\n  --out <FILE>\n\n\
                    Usage: corecast keygen --out <FILE>\n";
        assert_eq!(
            usage(text).to_string(),
            "the following required arguments were not provided: --out <FILE>; \
             `corecast keygen --help` says what is allowed"
        );
    }
}
