//! `volumes`: what apps keep on machines.

use tabbify_api::volumes::{VolumeList, VolumeView};
use tabbify_types::HostName;

use crate::args::{RemoveVolumeArgs, VolumeArgs};
use crate::command::Tool;
use crate::error::{Code, Exit, Failure, Result};

pub(crate) fn list(tool: &Tool, args: &VolumeArgs) -> Result<Exit> {
    let client = tool.client()?;
    let app = tool.app(&client, args.name.as_deref())?;
    let list = client.volumes(app.id)?;
    tool.output.result(&shown(&list), &list)?;
    Ok(Exit::Fine)
}

fn shown(list: &VolumeList) -> String {
    let volumes = list.volumes.iter().map(line);
    let silent = list
        .silent
        .iter()
        .map(|machine| format!("{machine}  does not answer: what it has is not listed"));
    let lines: Vec<String> = volumes.chain(silent).collect();
    match lines.is_empty() {
        true => "No volumes. Write one: [runtime] volume = { mount = \"/data\" }".to_owned(),
        false => lines.join("\n"),
    }
}

/// `box1  1GiB, of which 37 MiB are on its disk, held by #3`.
fn line(volume: &VolumeView) -> String {
    let size = match volume.size {
        Some(size) => size.to_string(),
        None => "any size".to_owned(),
    };
    let held = match volume.held_by {
        Some(instance) => format!("held by #{instance}"),
        None => "held by nobody".to_owned(),
    };
    let used = volume.used.bytes().div_ceil(1 << 20);
    let machine = &volume.machine;
    format!("{machine}  {size}, of which {used} MiB are on its disk, {held}")
}

pub(crate) fn remove(tool: &Tool, args: &RemoveVolumeArgs) -> Result<Exit> {
    let machine: HostName = args
        .machine
        .parse()
        .map_err(|error| Failure::new(Code::Usage, format!("{error}.")))?;
    let client = tool.client()?;
    let app = tool.app(&client, Some(&args.name))?;
    if app.name.as_str() != args.confirm {
        let what = format!(
            "--confirm {:?} is not the app's name: it is {:?}. Nothing was removed.",
            args.confirm,
            app.name.as_str()
        );
        return Err(Failure::new(Code::Usage, what));
    }
    client.remove_volume(app.id, &machine)?;
    let text = format!("✓ the volume of {} on {machine} is gone", app.name);
    let document = serde_json::json!({ "app": app.id, "removed_from": machine });
    tool.output.result(&text, &document)?;
    Ok(Exit::Fine)
}

#[cfg(test)]
mod tests {
    use tabbify_types::{ByteSize, InstanceId};

    use super::*;

    #[test]
    fn volumes_in_words() {
        let volume = VolumeView {
            machine: "box1".parse().unwrap(),
            size: Some(ByteSize::mib(1024)),
            used: ByteSize((36 << 20) + 1),
            held_by: Some(InstanceId(3)),
        };
        let held = "box1  1GiB, of which 37 MiB are on its disk, held by #3";
        assert_eq!(line(&volume), held);
        let free = VolumeView {
            size: None,
            held_by: None,
            ..volume
        };
        let list = VolumeList {
            volumes: vec![free],
            silent: vec!["box2".parse().unwrap()],
        };
        let expected = "box1  any size, of which 37 MiB are on its disk, held by nobody\n\
            box2  does not answer: what it has is not listed";
        assert_eq!(shown(&list), expected);
        assert!(shown(&VolumeList::default()).starts_with("No volumes."));
    }
}
