//! What is trained, by the arguments of Hugging Face's trainers and others like them.

use autodist_exporters::{CommandLine, Target, import_with};
use autodist_spec::{BaseBits, InputError, LoraTarget, Trainable, catalog};

fn read(text: &str) -> Result<Trainable, InputError> {
    let open = |_: &str| Err(InputError::new("", "", "is another file"));
    let command = CommandLine { devices: Some(8), ..CommandLine::default() };
    let model = Some(catalog::model("llama3-8b").unwrap());
    import_with(Target::Transformers, text, model, command, &open).map(|read| read.settings.trainable)
}

/// A file, rank and layers of its adapters, and the bits of what is frozen.
type Case<'a> = (&'a str, Option<(u32, &'a [LoraTarget])>, BaseBits);

#[test]
fn adapters_are_read_in_the_words_of_each() {
    let (q, v, all) = (LoraTarget::Q, LoraTarget::V, LoraTarget::AllLinear);
    let cases: [Case<'_>; 12] = [
        (r#"{"bf16": true}"#, None, BaseBits::Whole),
        // TRL: the switch decides, and its default rank is 16.
        (r#"{"use_peft": false, "lora_r": 8}"#, None, BaseBits::Whole),
        (r#"{"use_peft": true}"#, Some((16, &[q, v])), BaseBits::Whole),
        (
            r#"{"use_peft": true, "lora_r": 32, "lora_target_modules": ["q_proj", "v_proj"], "load_in_4bit": true, "lora_alpha": 16}"#,
            Some((32, &[q, v])),
            BaseBits::FourSingle,
        ),
        (
            r#"{"use_peft": true, "lora_target_modules": "all-linear", "load_in_4bit": true, "use_bnb_nested_quant": true}"#,
            Some((16, &[all])),
            BaseBits::Four,
        ),
        // LLaMA-Factory and ms-swift: rank 8 on all layers.
        ("finetuning_type: lora\nlora_target: all\n", Some((8, &[all])), BaseBits::Whole),
        (
            "finetuning_type: lora\nlora_rank: 64\nlora_target: q_proj,v_proj\nquantization_bit: 4\n",
            Some((64, &[q, v])),
            BaseBits::Four,
        ),
        ("finetuning_type: full\nlora_rank: 64\n", None, BaseBits::Whole),
        ("--train_type lora --target_modules all-linear --quant_bits 8", Some((8, &[all])), BaseBits::Eight),
        ("--train_type full --lora_rank 8", None, BaseBits::Whole),
        // Scripts with a switch of their own.
        (
            "--use_lora True --lora_rank 8 --lora_target_modules q_proj v_proj",
            Some((8, &[q, v])),
            BaseBits::Whole,
        ),
        ("--use_lora False --lora_rank 8", None, BaseBits::Whole),
    ];
    for (text, expected, bits) in cases {
        let read = read(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        let found = read.lora.map(|lora| (lora.rank, lora.targets.iter().collect::<Vec<_>>()));
        assert_eq!(found, expected.map(|(rank, targets)| (rank, targets.to_vec())), "{text}");
        assert_eq!(read.base_bits, bits, "{text}");
    }
}

#[test]
fn what_is_not_known_is_asked_for_by_its_flag() {
    for (text, field, flag) in [
        (r#"{"lora_r": 8}"#, "lora_r", "--lora-rank"),
        (r#"{"use_lora": true}"#, "lora_rank", "--lora-rank"),
        (r#"{"use_lora": true, "lora_r": 8}"#, "lora_target_modules", "--lora-targets"),
        (
            r#"{"use_peft": true, "lora_target_modules": ["lm_head"]}"#,
            "lora_target_modules",
            "--lora-targets",
        ),
        (r#"{"finetuning_type": "freeze"}"#, "finetuning_type", "--freeze"),
        (r#"{"train_type": "longlora"}"#, "train_type", "--lora-rank"),
        (r#"{"use_peft": true, "modules_to_save": ["lm_head"]}"#, "modules_to_save", "--freeze"),
        (r#"{"use_peft": true, "use_dora": true}"#, "use_dora", "LoRA is priced"),
        (
            r#"{"finetuning_type": "lora", "lora_target": "all", "quantization_bit": 2}"#,
            "quantization_bit",
            "--base-bits",
        ),
    ] {
        let error = read(text).err().unwrap_or_else(|| panic!("{text} was read"));
        assert_eq!(error.field, field, "{text}: {error}");
        assert!(error.hint.contains(flag), "{text}: {error}");
    }
}

#[test]
fn settings_of_deepspeed_with_a_name_are_those_of_ms_swift() {
    let open = |_: &str| Err(InputError::new("", "", "is not here"));
    let read = |name: &str| {
        let text = format!("swift sft --deepspeed {name} --per_device_train_batch_size 1");
        let command = CommandLine { devices: Some(8), ..CommandLine::default() };
        let model = Some(catalog::model("llama3-8b").unwrap());
        import_with(Target::Transformers, &text, model, command, &open).map(|read| read.settings)
    };
    for (name, stage, optimizer, parameters) in [
        ("zero0", 0, false, false),
        ("zero2", 2, false, false),
        ("zero2_offload", 2, true, false),
        ("zero3", 3, false, false),
        ("zero3_offload", 3, true, true),
    ] {
        let settings = read(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        let away = (settings.states.optimizer.is_away(), settings.states.parameters.is_away());
        assert_eq!((settings.zero_stage, away), (stage, (optimizer, parameters)), "{name}");
    }
    for name in ["zero4", "zero", "zero3.json", "zero2_offloaded"] {
        assert_eq!(read(name).unwrap_err().field, "deepspeed", "{name}");
    }
}
