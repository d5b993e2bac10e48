//! A disk that holds already what would be written: it is left as it is.

use anneal_protocol::agent::{Amount, Delta, StepFailure, Verify};

use super::{Job, Writer, failed};
use crate::disk::body::{First, Supply};
use crate::disk::compare::Survey;
use crate::disk::device::{Aligned, Disk};
use crate::disk::grow;

impl<D: Disk> Writer<'_, D> {
    /// Every frame is right, and has just been read. What an earlier system left beyond the image
    /// is cleared as by a full write.
    pub(super) fn nothing_to_do(&mut self, survey: &Survey) -> Result<(), StepFailure> {
        let Job { manifest, disk, .. } = self.job;
        let beyond = self.plan.clear.iter().map(|range| {
            range
                .start
                .max(manifest.size())
                .next_multiple_of(disk.sector())..range.end
        });
        for range in beyond.filter(|range| range.start < range.end) {
            // At most END_OF_DISK.
            let mut bytes = Aligned::new((range.end - range.start) as usize);
            disk.read_at(range.start, &mut bytes)
                .map_err(|e| failed("read", range.start, &e))?;
            if bytes.iter().any(|byte| *byte != 0) {
                disk.zero(range.clone())
                    .map_err(|e| failed("clear", range.start, &e))?;
                self.flush()?;
            }
        }
        self.leave(survey);
        Ok(())
    }

    /// Nothing was written: every frame is right, and has just been read.
    fn leave(&mut self, survey: &Survey) {
        self.count(survey, &[]);
        if self.job.verify != Verify::None {
            self.result.read_back = Some(match self.job.verify {
                Verify::Full => self.result.compared,
                _ => Amount::default(),
            });
        }
        self.tell_end();
    }

    /// Whether only the first frame differs, and that because the disk has it grown: then nothing
    /// is written. A table that cannot be grown is refused here, before anything is changed, when
    /// its frame is the one that came first.
    pub(super) fn is_grown<S: Supply>(
        &mut self,
        survey: &Survey,
        supply: Option<&S>,
        first: Option<&First>,
    ) -> Result<bool, StepFailure> {
        let Job { manifest, disk, .. } = self.job;
        let (Some(which), Some(supply), Some(first)) = (self.job.grow, supply, first) else {
            return Ok(false);
        };
        if first.index != 0 {
            return Ok(false);
        }
        let grown = grow::plan(manifest, disk, which, &first.raw)?;
        let rest = self.job.delta != Delta::Off && survey.same[1..].iter().all(|same| *same);
        if !rest || !grow::is_there(disk, &first.raw, grown.as_ref()) {
            return Ok(false);
        }
        supply.judge(first.index, first.source, true);
        supply.stop();
        let mut survey = survey.clone();
        survey.same[0] = true;
        match grown {
            // What is beyond the image belongs to the grown partition.
            Some(grown) => {
                self.result.grown = Some(grown.size);
                self.leave(&survey);
            }
            None => self.nothing_to_do(&survey)?,
        }
        Ok(true)
    }
}
