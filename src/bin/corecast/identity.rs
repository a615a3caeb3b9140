//! Keys and registries.

use corecast::node::{Record, RegistryFile};
use corecast::types::Member;
use corecast::{Identity, KeyFile};

use crate::cli::{Add, Keygen, Registry};
use crate::subnet::fault::{Exit, Fault};
use crate::subnet::terminal::say;

/// Makes a key file and prints the node's id.
pub(crate) fn keygen(options: &Keygen) -> Result<(), Fault> {
    let identity = Identity::generate().map_err(|error| Fault::new(Exit::Os, error.to_string()))?;
    KeyFile::new(&options.out).create(&identity).map_err(|error| match Fault::from(error) {
        // A folder that is missing on the way to an output.
        fault if fault.exit == Exit::NoInput => Fault::new(Exit::CannotCreate, fault.to_string()),
        fault => fault,
    })?;
    say(&identity.id().to_string())
}

/// Makes, fills or shows a registry.
pub(crate) fn registry(command: Registry) -> Result<(), Fault> {
    match command {
        Registry::Init { subnet, lanes, out } => {
            let record = RegistryFile::new(&out).create(&subnet, lanes)?;
            say(&summary(&record))
        }
        Registry::Add(options) => add(options),
        Registry::Show { registry } => {
            let record = RegistryFile::new(&registry).record()?;
            let members = record.members.iter().map(|Member { id, addresses }| {
                let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
                format!("\n{id}  {}", addresses.join(" "))
            });
            say(&format!("{}{}", summary(&record), members.collect::<String>()))
        }
    }
}

fn add(options: Add) -> Result<(), Fault> {
    let id = match (options.member.id, options.member.key_file) {
        (Some(id), _) => id,
        (None, Some(path)) => KeyFile::new(path).load()?.id(),
        (None, None) => {
            return Err(Fault::new(Exit::Usage, "--id or --key-file is needed"));
        }
    };
    let member = Member { id, addresses: options.address };
    say(&summary(&RegistryFile::new(&options.registry).add(member)?))
}

fn summary(record: &Record) -> String {
    let Record { subnet, version, lanes, members } = record;
    format!("subnet {subnet:?}, version {}, lanes {lanes}, members {}", version.0, members.len())
}
