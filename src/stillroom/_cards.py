"""The cards: what each of the seventy-six systems is, in one line each. Data only; see catalogue.py."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Card:
    """One published system."""

    slug: str
    title: str  # short name of the system, as the field says it, e.g. 'NKD / USKD'
    paper: str  # the paper's title
    source: str  # short, e.g. 'Yang et al., ICCV 2023, arXiv:2303.13005'
    family: str  # e.g. 'predictors/labels'
    gist: str  # what goes in and what comes out, at most 110 characters
    methods: tuple[str, ...] = ()  # names to run it by; empty: the slug itself


CARDS: tuple[Card, ...] = (
    Card(
        slug="data-pruning-kd",
        title="DP-KD",
        paper="Distilling the Knowledge in Data Pruning",
        source="Ben-Baruch et al., ICML 2025, arXiv:2403.07854",
        family="predictors/labels",
        gist=(
            "A pruned training set and a full-data teacher in; kept indices, a matching KD weight and "
            "the student out."
        ),
    ),
    Card(
        slug="ferkd",
        title="FerKD",
        paper="FerKD: Surgical Label Adaptation for Efficient Distillation",
        source="Shen, ICCV 2023, arXiv:2312.17473",
        family="predictors/labels",
        gist=(
            "Images and a teacher run once over crops in; a stored table of vetted crop labels and its "
            "students out."
        ),
    ),
    Card(
        slug="mdcs",
        title="MDCS",
        paper="MDCS: More Diverse Experts with Consistency Self-distillation for Long-tailed Recognition",
        source="Zhao et al., ICCV 2023, arXiv:2308.09922",
        family="predictors/labels",
        gist="Long-tailed labelled data in; three averaged experts for head, middle and tail classes out.",
    ),
    Card(
        slug="nkd-uskd",
        title="NKD / USKD",
        paper=(
            "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with "
            "Normalized Loss and Customized Soft Labels"
        ),
        source="Yang et al., ICCV 2023, arXiv:2303.13005",
        family="predictors/labels",
        gist=(
            "Labels with a teacher (NKD) or with none (USKD) in; a classifier trained on renormalised "
            "soft labels out."
        ),
        methods=("nkd", "uskd"),
    ),
    Card(
        slug="ps-kd",
        title="PS-KD",
        paper="Self-Knowledge Distillation with Progressive Refinement of Targets",
        source="Kim et al., ICCV 2021, arXiv:2006.12000",
        family="predictors/labels",
        gist="Labels blended with last epoch's own predictions in; the same network, better calibrated, out.",
    ),
    Card(
        slug="sla-sd",
        title="SLA+SD",
        paper="Self-supervised Label Augmentation via Input Transformations",
        source="Lee et al., ICML 2020, arXiv:1910.05872",
        family="predictors/labels",
        gist=(
            "Labelled images and M transformations in; a joint class-and-transform voter and its "
            "one-pass copy out."
        ),
    ),
    Card(
        slug="ssld",
        title="SSLD",
        paper=(
            "Beyond Self-Supervision: A Simple Yet Effective Network Distillation Alternative to "
            "Improve Backbones"
        ),
        source="Cui et al., 2021, arXiv:2103.05959",
        family="predictors/labels",
        gist=(
            "A strong teacher and a mined unlabelled pool in; a small backbone for classification and "
            "transfer out."
        ),
    ),
    Card(
        slug="acam-kd",
        title="ACAM-KD",
        paper="ACAM-KD: Adaptive and Cooperative Attention Masking for Knowledge Distillation",
        source="Lan & Tian, ICCV 2025, arXiv:2503.06307",
        family="predictors/features",
        gist=(
            "A teacher detector or segmenter in; a student that copied features through masks learnt "
            "from both out."
        ),
    ),
    Card(
        slug="m2mkd",
        title="m2mKD",
        paper="m2mKD: Module-to-Module Knowledge Distillation for Modular Transformers",
        source="Lo et al., 2024, arXiv:2402.16918",
        family="predictors/features",
        gist=(
            "A monolithic teacher cut into modules in; a modular student, taught piece by piece, then "
            "joined, out."
        ),
    ),
    Card(
        slug="random-teacher",
        title="Random Teachers",
        paper="Random Teachers are Good Teachers",
        source="Sarnthein et al., ICML 2023, arXiv:2302.12091",
        family="predictors/features",
        gist=(
            "Unlabelled inputs and an untrained frozen teacher in; an encoder that probes better than "
            "its teacher out."
        ),
    ),
    Card(
        slug="talking-models",
        title="Talking Models",
        paper=(
            "Talking Models: Distill Pre-trained Knowledge to Downstream Models via Interactive Communication"
        ),
        source="Zhao et al., 2023, arXiv:2310.03188",
        family="predictors/features",
        gist="A big teacher and a downstream student that trade messages in; the student, alone, out.",
    ),
    Card(
        slug="dmae",
        title="DMAE",
        paper="Masked Autoencoders Enable Efficient Knowledge Distillers",
        source="Bai et al., CVPR 2023, arXiv:2208.12256",
        family="predictors/pretraining",
        gist="An MAE teacher, run part-way on few visible patches, in; a small pre-trained ViT encoder out.",
    ),
    Card(
        slug="dmjd",
        title="DMJD",
        paper="Disjoint Masking with Joint Distillation for Efficient Masked Image Modeling",
        source="Ma et al., 2023, arXiv:2301.00230",
        family="predictors/pretraining",
        gist=(
            "Unlabelled images in several non-overlapping maskings in; a pre-trained encoder in fewer "
            "epochs out."
        ),
    ),
    Card(
        slug="sd-further-pretraining",
        title="SD further pre-training",
        paper="Self-Distillation for Further Pre-training of Transformers",
        source="Lee et al., ICLR 2023, arXiv:2210.02871",
        family="predictors/pretraining",
        gist=(
            "A pre-trained transformer and a small unlabelled target set in; a domain-adapted encoder "
            "to fine-tune out."
        ),
    ),
    Card(
        slug="unfused",
        title="UnFuSeD",
        paper="UnFuSeD: UNsupervised Finetuning Using SElf supervised Distillation",
        source="Seth et al., ICASSP 2023 SASB workshop, arXiv:2303.05668",
        family="predictors/pretraining",
        gist=(
            "Unlabelled audio and few labels in; a small classifier first trained on its encoder's "
            "cluster labels out."
        ),
    ),
    Card(
        slug="diswot",
        title="DisWOT",
        paper="DisWOT: Student Architecture Search for Distillation WithOut Training",
        source="Dong et al., CVPR 2023, arXiv:2303.15678",
        family="predictors/architectures",
        gist=(
            "A teacher design, a search space, one batch and a budget in; the student ranked best, "
            "untrained, out."
        ),
    ),
    Card(
        slug="jei-dnn",
        title="JEI-DNN",
        paper="Jointly-Learned Exit and Inference for a Dynamic Neural Network",
        source="Regol et al., ICLR 2024, arXiv:2310.09163",
        family="predictors/architectures",
        gist=(
            "A frozen classifier and a cost weight in; early exits with learnt gates, trained together, out."
        ),
    ),
    Card(
        slug="qsd-transformer",
        title="QSD-Transformer",
        paper="Quantized Spike-driven Transformer",
        source="Qiu et al., ICLR 2025, arXiv:2501.13492",
        family="predictors/architectures",
        gist="Labelled images and a full-precision teacher in; a 2-4 bit spiking vision transformer out.",
    ),
    Card(
        slug="quantized-distillation",
        title="Quantized distillation / differentiable quantization",
        paper="Model compression via distillation and quantization",
        source="Polino et al., ICLR 2018, arXiv:1802.05668",
        family="predictors/architectures",
        gist=(
            "A teacher, a smaller student and a bit width in; few-bit student weights, code book and "
            "byte size out."
        ),
    ),
    Card(
        slug="sd-darts",
        title="SD-DARTS",
        paper="Improving Differentiable Architecture Search via Self-Distillation",
        source="Zhu et al., Neural Networks 2023, arXiv:2302.05629",
        family="predictors/architectures",
        gist=(
            "Data and a cell search space in; an architecture cut from a supernet flattened by its own "
            "past out."
        ),
    ),
    Card(
        slug="boot",
        title="BOOT",
        paper="BOOT: Data-free Distillation of Denoising Diffusion Models with Bootstrapping",
        source="Gu et al., ICML 2024, arXiv:2306.05544",
        family="generators/trajectories",
        gist=(
            "A diffusion teacher and noise, no images, in; a one-step student trained along the whole "
            "trajectory out."
        ),
    ),
    Card(
        slug="ctmsr",
        title="CTMSR",
        paper="Consistency Trajectory Matching for One-Step Generative Super-Resolution",
        source="You et al., 2025, arXiv:2503.20349",
        family="generators/trajectories",
        gist=(
            "Low/high-resolution image pairs and no teacher in; a one-evaluation x4 super-resolution "
            "network out."
        ),
    ),
    Card(
        slug="guided-distillation",
        title="Guided distillation",
        paper="On Distillation of Guided Diffusion Models",
        source="Meng et al., CVPR 2023, arXiv:2210.03142",
        family="generators/trajectories",
        gist=(
            "A classifier-free guided teacher in; one network that takes the guidance weight, 1-16 "
            "steps, out."
        ),
    ),
    Card(
        slug="hyper-sd",
        title="Hyper-SD",
        paper="Hyper-SD: Trajectory Segmented Consistency Model for Efficient Image Synthesis",
        source="Ren et al., NeurIPS 2024, arXiv:2404.13686",
        family="generators/trajectories",
        gist=(
            "A guided text-to-image teacher and reward models in; LoRA weights for 8, 4, 2 or 1 "
            "unguided steps out."
        ),
    ),
    Card(
        slug="magic141",
        title="Magic 1-For-1 (Magic141)",
        paper="Magic 1-For-1: Generating One Minute Video Clips within One Minute",
        source="Yi et al., 2025, arXiv:2502.07701",
        family="generators/trajectories",
        gist=(
            "A video diffusion transformer and clips in; a 4-step int8 image-to-video model that "
            "chains clips out."
        ),
    ),
    Card(
        slug="mcm",
        title="MCM",
        paper=(
            "Motion Consistency Model: Accelerating Video Diffusion with Disentangled "
            "Motion-Appearance Distillation"
        ),
        source="Zhai et al., NeurIPS 2024, arXiv:2406.06890",
        family="generators/trajectories",
        gist="A video teacher for motion and good stills for looks in; LoRA weights for 1-8 step video out.",
    ),
    Card(
        slug="slam",
        title="SLAM (SPLAM)",
        paper="Accelerating Image Generation with Sub-path Linear Approximation Model",
        source="Xu et al., ECCV 2024, arXiv:2404.13903",
        family="generators/trajectories",
        gist=(
            "A latent diffusion model and captioned images in; a 2-4 step U-Net trained inside each "
            "ODE sub-path out."
        ),
    ),
    Card(
        slug="videoscene",
        title="VideoScene",
        paper="VideoScene: Distilling Video Diffusion Model to Generate 3D Scenes in One Step",
        source="Wang et al., CVPR 2025, arXiv:2504.01956",
        family="generators/trajectories",
        gist="Two views and a coarse 3D render in; a 3D-consistent camera-path video in one step out.",
    ),
    Card(
        slug="instaflow",
        title="InstaFlow",
        paper="InstaFlow: One Step is Enough for High-Quality Diffusion-Based Text-to-Image Generation",
        source="Liu et al., ICLR 2024, arXiv:2309.06380",
        family="generators/flows",
        gist=(
            "Stable Diffusion and captions in; a straightened flow, then a one-step text-to-image model, out."
        ),
    ),
    Card(
        slug="rfpp",
        title="2-Rectified Flow++",
        paper="Improving the Training of Rectified Flows",
        source="Lee et al., NeurIPS 2024, arXiv:2405.20320",
        family="generators/flows",
        gist=(
            "An EDM teacher's noise-image pairs in; a rectified flow good at 1-2 steps after a single "
            "reflow out."
        ),
    ),
    Card(
        slug="slimflow",
        title="SlimFlow",
        paper="SlimFlow: Training Smaller One-Step Diffusion Models with Rectified Flow",
        source="Zhu et al., ECCV 2024, arXiv:2407.12718",
        family="generators/flows",
        gist="A large many-step teacher in; a one-step network of fewer parameters and another shape out.",
    ),
    Card(
        slug="disback",
        title="DisBack",
        paper=(
            "Distribution Backtracking Builds A Faster Convergence Trajectory for One-step Diffusion "
            "Distillation"
        ),
        source="Zhang et al., ICLR 2025, arXiv:2408.15991",
        family="generators/matching",
        gist=(
            "A teacher and a raw generator in; a one-step generator led back along the teacher's decay "
            "path out."
        ),
    ),
    Card(
        slug="distillation-dpo",
        title="Distillation-DPO",
        paper=(
            "Diffusion Distillation With Direct Preference Optimization For Efficient 3D LiDAR Scene "
            "Completion"
        ),
        source="Zhao et al., 2025, arXiv:2504.11447",
        family="generators/matching",
        gist=(
            "A scan-completion teacher and any scalar metric in; a few-step student trained on its "
            "ranked pairs out."
        ),
    ),
    Card(
        slug="f-distill",
        title="f-distill",
        paper="One-step Diffusion Models with f-Divergence Distribution Matching",
        source="Xu et al., 2025, arXiv:2502.15681",
        family="generators/matching",
        gist=(
            "A teacher, real data and a choice of f-divergence in; a one-step generator that drops "
            "fewer modes out."
        ),
    ),
    Card(
        slug="msd",
        title="MSD",
        paper="Multi-student Diffusion Distillation for Better One-step Generators",
        source="Song et al., ICML 2025, arXiv:2410.23274",
        family="generators/matching",
        gist="A conditional teacher and a split of its conditions in; K one-step students and a router out.",
    ),
    Card(
        slug="placiddreamer",
        title="PlacidDreamer (BSD)",
        paper="PlacidDreamer: Advancing Harmony in Text-to-3D Generation",
        source="Huang et al., ACM MM 2024, arXiv:2407.13976",
        family="generators/matching",
        gist=(
            "A prompt and a 2-D diffusion prior in; an optimised asset with prompt fit and likelihood "
            "balanced out."
        ),
    ),
    Card(
        slug="score-forgetting-distillation",
        title="SFD",
        paper=(
            "Score Forgetting Distillation: A Swift, Data-Free Method for Machine Unlearning in "
            "Diffusion Models"
        ),
        source="Chen et al., ICLR 2025, arXiv:2409.11219",
        family="generators/matching",
        gist=(
            "A conditional denoiser, a concept to drop and a substitute in; a one-step generator "
            "without it out."
        ),
    ),
    Card(
        slug="snoopi",
        title="SNOOPI (PG-SB + NASA)",
        paper="SNOOPI: Supercharged One-step Diffusion Distillation with Proper Guidance",
        source="Nguyen et al., 2024, arXiv:2412.02687",
        family="generators/matching",
        gist=(
            "A teacher and prompts in; a one-step model trained at random guidance that heeds negative "
            "prompts out."
        ),
    ),
    Card(
        slug="swiftbrush",
        title="SwiftBrush",
        paper="SwiftBrush: One-Step Text-to-Image Diffusion Model with Variational Score Distillation",
        source="Nguyen & Tran, CVPR 2024, arXiv:2312.05239",
        family="generators/matching",
        gist=(
            "A text-to-image teacher and a file of prompts, no images, in; a one-evaluation student "
            "U-Net out."
        ),
    ),
    Card(
        slug="tad-sr",
        title="TAD-SR",
        paper="One Step Diffusion-based Super-Resolution with Time-Aware Distillation",
        source="He et al., 2024, arXiv:2408.07476",
        family="generators/matching",
        gist="A 15-step super-resolution diffusion teacher in; a one-step restorer of fine x4 detail out.",
    ),
    Card(
        slug="uni-instruct",
        title="Uni-Instruct",
        paper="Uni-Instruct: One-step Diffusion Model through Unified Diffusion Divergence Instruction",
        source="Wang et al., NeurIPS 2025, arXiv:2505.20755",
        family="generators/matching",
        gist=(
            "An EDM teacher, real data and a divergence in; a one-step generator from a loss joining "
            "KL and score out."
        ),
    ),
    Card(
        slug="adapter-guidance-distillation",
        title="AGD",
        paper="Efficient Distillation of Classifier-Free Guidance using Adapters",
        source="Perez Jensen & Sadat, TMLR 2025, arXiv:2503.07274",
        family="generators/steering",
        gist=(
            "A frozen conditional diffusion model in; a small adapter that gives any guidance scale in "
            "one pass out."
        ),
    ),
    Card(
        slug="ditto-2",
        title="DITTO-2",
        paper="DITTO-2: Distilled Diffusion Inference-Time T-Optimization for Music Generation",
        source="Novack et al., ISMIR 2024, arXiv:2405.20289",
        family="generators/steering",
        gist=(
            "A music generator and a differentiable control target in; optimised starting noise and "
            "its samples out."
        ),
    ),
    Card(
        slug="diversity-distillation",
        title="Diversity distillation",
        paper="Distilling Diversity and Control in Diffusion Models",
        source="Gandikota & Bau, 2025, arXiv:2503.10637",
        family="generators/steering",
        gist=(
            "A base model and its distilled twin in; varied fast samples, moved LoRAs and x0 strips "
            "out, no training."
        ),
    ),
    Card(
        slug="lora-enhanced-distillation",
        title="LoRA-enhanced distillation",
        paper="LoRA-Enhanced Distillation on Guided Diffusion Models",
        source="Golnari, 2023, arXiv:2312.06899",
        family="generators/steering",
        gist=(
            "A guided pipeline and image-prompt pairs in; a LoRA file that needs one pass a step "
            "instead of two out."
        ),
    ),
    Card(
        slug="pairwise-sample-optimization",
        title="PSO",
        paper="Tuning Timestep-Distilled Diffusion Model Using Pairwise Sample Optimization",
        source="Miao et al., ICLR 2025, arXiv:2410.03190",
        family="generators/steering",
        gist=(
            "A few-step model and preferred images or a reward in; a LoRA that tunes it and keeps it "
            "few-step out."
        ),
    ),
    Card(
        slug="potential-flow-traversal",
        title="PDETraversal",
        paper="Latent Traversals in Generative Models as Potential Flows",
        source="Song et al., ICML 2023, arXiv:2304.12944",
        family="generators/steering",
        gist="A GAN or VAE decoder in; K curved latent paths along the gradients of learnt potentials out.",
    ),
    Card(
        slug="sims",
        title="SIMS",
        paper="Self-Improving Diffusion Models with Synthetic Data",
        source="Alemohammad et al., 2024, arXiv:2408.16333",
        family="generators/steering",
        gist=(
            "A diffusion model and its own samples in; a negative guide that steers it off its own "
            "artefacts out."
        ),
    ),
    Card(
        slug="yonos-sr",
        title="YONOS-SR",
        paper="You Only Need One Step: Fast Super-Resolution with Stable Diffusion via Scale Distillation",
        source="Noroozi et al., ECCV 2024, arXiv:2401.17258",
        family="generators/steering",
        gist=(
            "Stable Diffusion and sharp images in; a one-step x4/x8 upscaler taught from lower "
            "magnifications out."
        ),
    ),
    Card(
        slug="ddae-plus-plus",
        title="DDAE++",
        paper="Enhancing Diffusion Models Towards Unified Generative and Discriminative Learning",
        source="Xiang et al., 2025, arXiv:2505.10999",
        family="generators/backbones",
        gist=(
            "A diffusion training run in; the same model with better samples and clearly better probe "
            "features out."
        ),
    ),
    Card(
        slug="inner-loop-feedback",
        title="ILF",
        paper="Accelerate High-Quality Diffusion Models with Inner Loop Feedback",
        source="Gwilliam et al., 2025, arXiv:2501.13107",
        family="generators/backbones",
        gist=(
            "A frozen diffusion transformer in; one light block that guesses the next step's features "
            "and skips work out."
        ),
    ),
    Card(
        slug="ldmol",
        title="LDMol",
        paper=(
            "LDMol: Text-Conditioned Molecule Diffusion Model Leveraging Chemically Informative Latent Space"
        ),
        source="Chang & Ye, ICML 2025, arXiv:2405.17829",
        family="generators/backbones",
        gist=(
            "SMILES and captions in; a text-to-molecule latent diffusion model that also retrieves and "
            "edits out."
        ),
    ),
    Card(
        slug="linfusion",
        title="LinFusion",
        paper="LinFusion: 1 GPU, 1 Minute, 16K Image",
        source="Liu et al., 2024, arXiv:2409.02097",
        family="generators/backbones",
        gist=(
            "A diffusion U-Net and captioned images in; linear self-attention modules for very large "
            "images out."
        ),
    ),
    Card(
        slug="spectral-diffusion",
        title="Spectral Diffusion",
        paper="Diffusion Probabilistic Model Made Slim",
        source="Yang et al., CVPR 2023, arXiv:2211.17106",
        family="generators/backbones",
        gist=(
            "A diffusion teacher and its data in; an 8-18 times slimmer U-Net that keeps high "
            "frequencies out."
        ),
    ),
    Card(
        slug="spiking-diffusion",
        title="SDM",
        paper="Spiking Diffusion Models",
        source="Cao et al., IEEE TAI 2024, arXiv:2408.16467",
        family="generators/backbones",
        gist=(
            "Images in; a spiking noise predictor, trained directly or converted, and its energy "
            "estimate out."
        ),
    ),
    Card(
        slug="sra",
        title="SRA",
        paper=(
            "No Other Representation Component Is Needed: Diffusion Transformers Can Provide "
            "Representation Guidance by Themselves"
        ),
        source="Jiang et al., ICLR 2026, arXiv:2505.02831",
        family="generators/backbones",
        gist=(
            "A DiT or SiT training run in; the same network, trained faster by aligning to its own "
            "later layers, out."
        ),
    ),
    Card(
        slug="cda",
        title="CDA",
        paper="Dataset Distillation via Curriculum Data Synthesis in Large Data Era",
        source="Yin & Shen, TMLR 2024, arXiv:2311.18838",
        family="condensation",
        gist=(
            "A network trained on big labelled data in; a few synthetic images a class with stored "
            "soft labels out."
        ),
    ),
    Card(
        slug="datadam",
        title="DataDAM",
        paper="DataDAM: Efficient Dataset Distillation with Attention Matching",
        source="Sajedi et al., ICCV 2023, arXiv:2310.00093",
        family="condensation",
        gist="Labelled images in; a few learnt images a class whose attention maps match the real ones out.",
    ),
    Card(
        slug="krr-st",
        title="KRR-ST",
        paper="Self-Supervised Dataset Distillation for Transfer Learning",
        source="Lee et al., ICLR 2024, arXiv:2310.06511",
        family="condensation",
        gist=(
            "Unlabelled images and a self-supervised net in; few synthetic images with target features "
            "to regress out."
        ),
    ),
    Card(
        slug="mirage",
        title="Mirage",
        paper="Mirage: Model-Agnostic Graph Distillation for Graph Classification",
        source="Gupta et al., ICLR 2024, arXiv:2310.09486",
        family="condensation",
        gist=(
            "Labelled graphs and a GNN depth in; frequent sets of computation trees per class, with no "
            "gradients, out."
        ),
    ),
    Card(
        slug="cascading-adversarial-bias",
        title="Cascading adversarial bias",
        paper="Cascading Adversarial Bias from Injection to Distillation in Language Models",
        source="Chaudhari et al., 2025, arXiv:2505.24842",
        family="audits",
        gist=(
            "A language-model distillation recipe in; a toy report on how far a planted bias travels, "
            "and detectors, out."
        ),
    ),
    Card(
        slug="ctrl-ssl-backdoor",
        title="CTRL",
        paper="An Embarrassingly Simple Backdoor Attack on Self-supervised Learning",
        source="Li et al., ICCV 2023, arXiv:2210.07346",
        family="audits",
        gist=(
            "A self-supervised recipe on toy images in; trigger success, entanglement and detection "
            "scores out."
        ),
    ),
    Card(
        slug="diff-protect-sds",
        title="Diff-Protect (SDS protection)",
        paper="Toward effective protection against diffusion based mimicry through score distillation",
        source="Xue et al., ICLR 2024, arXiv:2311.12832",
        family="audits",
        gist=(
            "An image and an epsilon budget in; a nearby copy that diffusion editors handle badly, "
            "with a report, out."
        ),
    ),
    Card(
        slug="fair-latent-distillation",
        title="Fair latent distillation",
        paper="Generating Synthetic Fair Syntax-agnostic Data by Learning and Distilling Fair Representation",
        source="Sikder et al., 2024, arXiv:2408.10755",
        family="audits",
        gist=(
            "Data with a sensitive attribute in; a small generator of synthetic data that depends less "
            "on it out."
        ),
    ),
    Card(
        slug="fgsm-cw-defensive-distillation",
        title="FGSM / C&W / defensive distillation",
        paper=(
            "Evaluating Adversarial Robustness: A Comparison Of FGSM, Carlini-Wagner Attacks, And The "
            "Role of Distillation as Defense Mechanism"
        ),
        source="Sarkar et al., 2024, arXiv:2404.04245",
        family="audits",
        gist=(
            "A distilled classifier and test images in; attack curves, C&W distances and a "
            "gradient-masking verdict out."
        ),
        methods=("defensive-distillation", "robustness-audit"),
    ),
    Card(
        slug="swing-distillation",
        title="Swing Distillation",
        paper="Swing Distillation: A Privacy-Preserving Knowledge Distillation Framework",
        source="Li et al., 2022, arXiv:2212.08349",
        family="audits",
        gist=(
            "A teacher LM with secrets, plus token privacy scores, in; a student of low canary exposure out."
        ),
    ),
    Card(
        slug="uibdiffusion",
        title="UIBDiffusion",
        paper="UIBDiffusion: Universal Imperceptible Backdoor Attack for Diffusion Models",
        source="Han et al., CVPR 2025, arXiv:2412.11441",
        family="audits",
        gist=(
            "A toy diffusion model, or any checkpoint to scan, in; backdoor success and three defence "
            "scores out."
        ),
    ),
    Card(
        slug="guided-self-distillation",
        title="GT-SD",
        paper=(
            "Even your Teacher Needs Guidance: Ground-Truth Targets Dampen Regularization Imposed by "
            "Self-Distillation"
        ),
        source="Borup & Andersen, NeurIPS 2021, arXiv:2102.13088",
        family="estimators",
        gist="Data and a model refitted to itself in; every round, the limit and the best label weight out.",
        methods=("guided-self-distillation", "guided-self-distillation-net"),
    ),
    Card(
        slug="moe-temperature",
        title="Dense-to-sparse Gaussian MoE",
        paper="Is Temperature Sample Efficient for Softmax Gaussian Mixture of Experts?",
        source="Nguyen et al., ICML 2024, arXiv:2401.13875",
        family="estimators",
        gist=(
            "(X, Y) pairs and a gate with temperature in; a fitted Gaussian mixture of experts and its "
            "rates out."
        ),
    ),
    Card(
        slug="moe-topk",
        title="Top-K Gaussian MoE",
        paper="Statistical Perspective of Top-K Sparse Softmax Gating Mixture of Experts",
        source="Nguyen et al., ICLR 2024, arXiv:2309.13850",
        family="estimators",
        gist=(
            "(X, Y) pairs, k experts and K kept in; a fitted sparse mixture and a check that K is "
            "large enough out."
        ),
    ),
    Card(
        slug="bamboo",
        title="BAMBOO",
        paper=(
            "BAMBOO: a predictive and transferable machine learning force field framework for liquid "
            "electrolyte development"
        ),
        source="Gong et al., 2024, arXiv:2404.07181",
        family="science",
        gist=(
            "Quantum-chemistry clusters and measured densities in; an ensemble-distilled, aligned "
            "force field out."
        ),
    ),
    Card(
        slug="fim-mjp",
        title="FIM-MJP",
        paper="Foundation Inference Models for Markov Jump Processes",
        source="Berghaus et al., NeurIPS 2024, arXiv:2406.06419",
        family="science",
        gist=(
            "Noisy, sparse paths of a 2-6 state jump process in; its rate matrix and start law in one "
            "pass out."
        ),
    ),
    Card(
        slug="nalsm",
        title="NALSM",
        paper=(
            "Increasing Liquid State Machine Performance with Edge-of-Chaos Dynamics Organized by "
            "Astrocyte-modulated Plasticity"
        ),
        source="Ivanov & Michmizos, NeurIPS 2021, arXiv:2111.01760",
        family="science",
        gist=(
            "Pixels or events in; spike counts from a self-tuned reservoir, class scores and branching "
            "factor out."
        ),
    ),
    Card(
        slug="pvd",
        title="PVD",
        paper=(
            "One is All: Bridging the Gap Between Neural Radiance Fields Architectures with "
            "Progressive Volume Distillation"
        ),
        source="Fang et al., AAAI 2023, arXiv:2211.15977",
        family="science",
        gist=(
            "A trained radiance field and its scene box, no photographs, in; the scene in another "
            "architecture out."
        ),
    ),
    Card(
        slug="rp2-cultivation",
        title="RP² cultivation",
        paper="Efficient Magic State Cultivation on RP²",
        source="Chen et al., PRX Quantum 2026, arXiv:2503.18657",
        family="science",
        gist=(
            "A noise strength and distances in; stim circuits for a logical T state, acceptance, error "
            "and cost out."
        ),
    ),
    Card(
        slug="stgg-al",
        title="STGG+AL",
        paper="Generating π-Functional Molecules Using STGG+ with Active Learning",
        source="Jolicoeur-Martineau et al., 2025, arXiv:2502.14842",
        family="science",
        gist=(
            "SMILES with properties and an oracle in; novel molecules far beyond the data and a tuned "
            "generator out."
        ),
    ),
)
