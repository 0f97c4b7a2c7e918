"""The short help of every command, printed without loading torch."""

MAIN = """\
usage: lightning-gen COMMAND [options]

Train, sample and measure generative models.

commands:
  fit        train a model; the same command again continues the run
  validate   run a trained model on the validation split
  test       run a trained model on the test split
  predict    draw the samples that a predict loader asks for
  sample     draw samples from a checkpoint into PNG files, an npz or a grid
  evaluate   score a checkpoint, or a folder of samples, against real images
  convert    bring models of other libraries in, and take ours out
  shards     write large data as shards, for disks, shared file systems and object storage
  latents    write the latents of an autoencoder for a data set, to train a latent model on
  list       show the packaged configurations and their recorded results

  --help     this page; after a command, its own page
  --version  the version of lightning_gen
  --debug    after a command: show the traceback of an error

examples:
  lightning-gen list
  lightning-gen fit -c gan/mnist_dcgan
  lightning-gen sample --ckpt_path runs/gan/mnist_dcgan --n 64 --format grid
  lightning-gen evaluate --ckpt_path runs/gan/mnist_dcgan --metrics fid,kid --n 10000
"""

FIT = """\
usage: lightning-gen fit -c NAME_OR_FILE [--section.key VALUE ...]

Train a model. NAME is a packaged configuration (see `lightning-gen list`), FILE a YAML file with the
sections seed_everything, trainer, model and data; any key of it can be given as a flag.

The run is kept in one folder, runs/NAME unless --trainer.default_root_dir says otherwise:
  config.yaml  checkpoints/  samples/  metrics.csv  tensorboard/  results.json
The same command again continues it from its newest checkpoint.

options:
  -c, --config NAME_OR_FILE     configuration; several are merged in their order
  --ckpt_path last|best|PATH    continue from this checkpoint
  --trainer.KEY, --model.KEY, --data.KEY VALUE
  --model CLASS, --data CLASS   by bare name or import path
  --model.help CLASS, --data.help CLASS, --trainer.callbacks.help CLASS
                                what the class accepts
  --print_config                print the whole configuration and stop
  --help_all                    every option of the trainer

examples:
  lightning-gen fit -c gan/mnist_dcgan
  lightning-gen fit -c gan/mnist_dcgan --trainer.max_epochs 20 --data.batch_size 64
  lightning-gen fit -c gan/mnist_dcgan --trainer.default_root_dir runs/second --seed_everything 1
  lightning-gen fit -c gan/mnist_dcgan --print_config > mine.yaml
  lightning-gen fit --model.help GAN
"""

_RUN = """\
usage: lightning-gen {name} --ckpt_path PATH_OR_RUN_FOLDER [-c NAME_OR_FILE] [--section.key VALUE]

{what}
Without -c the configuration is the config.yaml of the run folder that the checkpoint lies in, or what
the checkpoint holds. The model is the checkpoint's, whatever the configuration says; where a given
option differs, a warning names it.

options:
  --ckpt_path PATH|last|best    a checkpoint, or a run folder: then its newest checkpoint
  -c, --config NAME_OR_FILE     configuration, by packaged name or path
  --trainer.KEY, --data.KEY VALUE
  --help_all                    every option of the trainer

examples:
  lightning-gen {name} --ckpt_path runs/gan/mnist_dcgan
  lightning-gen {name} --ckpt_path runs/gan/mnist_dcgan/checkpoints/last.ckpt --data.batch_size 256
"""

SAMPLE = """\
usage: lightning-gen sample --ckpt_path PATH_OR_RUN_FOLDER [options]

Draw samples from a checkpoint; nothing but the checkpoint is needed. Sample i is a function of the seed
and of i alone, whatever the batch size. Stopped, the same command continues where it was.

options:
  --ckpt_path PATH          a checkpoint, or a run folder: then its newest checkpoint
  --n N                     how many (default: 64)
  --seed N                  (default: 0)
  --format png|npz|grid     a folder of PNG files, one npz (arr_0, NHWC uint8) or one picture
                            (default: from the ending of --out, else png)
  --out PATH                folder of the PNG files, or the file to write
                            (default: in the run folder's samples/, by its settings)
  --batch_size N            samples drawn at a time (default: 64)
  --cond 3 | 0,1,2 | each   class of every sample; the classes listed, in turn; or all in turn
  --weights NAME            ema, raw, ema-10000 ...: which weights (default: the first average)
  --truncation X            narrow the latent distribution, for models that have it
  --steps N --solver NAME --guidance S
                            of a diffusion model: steps, solver (ddim, heun, dpmpp_2m ...), scale (1: none)
  --image FILE --mask FILE --strength X --resample N --picture FILE --guide CKPT
                            of a diffusion model: begin from a picture, keep its light pixels of the mask;
                            the picture of a model with a conditioner; a worse model for autoguidance
  --device auto|cpu|cuda    (default: auto)
  --import MODULE           import a module first: the one that defines your own classes

examples:
  lightning-gen sample --ckpt_path runs/gan/mnist_dcgan --n 64 --format grid --out grid.png
  lightning-gen sample --ckpt_path last.ckpt --n 50000 --seed 1 --format npz --out samples.npz
  lightning-gen sample --ckpt_path runs/gan/mnist_cgan --n 100 --cond each --out digits
"""

EVALUATE = """\
usage: lightning-gen evaluate (--ckpt_path PATH | --samples FOLDER_OR_NPZ) [options]

Score generated images against real ones. Every score is printed and written with its protocol: number of
samples, reference split, feature extractor and hash, resize, seed, weights.

options:
  --ckpt_path PATH          a checkpoint, or a run folder: then its newest checkpoint
  --samples PATH            instead of a checkpoint: a folder of images, a zip or an npz
  --data NAME_OR_FOLDER     the real images: mnist, cifar10, ... or a folder of images
                            (default: the data that the checkpoint names)
  --split train|val|test    of the real images (default: test)
  --metrics LIST            fid,kid,is,fd-lenet5,class-accuracy (default: fid,kid,is; for
                            mnist and digits fd-lenet5, which needs no download)
  --n N                     samples scored (default: 10000 of a checkpoint, all of --samples)
  --seed N                  (default: 0)
  --weights NAME            ema, raw, ema-10000 ... (default: the first average)
  --batch_size N            (default: 64)
  --weights_path FILE       a local file of the Inception network's weights
  --data_size N             height and width that the real images are brought to
  --data_root FOLDER        where the named data sets lie
  --out FILE                (default: results.json in the run folder, else ./results.json)
  --device auto|cpu|cuda    (default: auto)
  --import MODULE           import a module first: the one that defines your own classes

examples:
  lightning-gen evaluate --ckpt_path runs/gan/mnist_dcgan --metrics fd-lenet5 --n 10000
  lightning-gen evaluate --samples samples.npz --data cifar10 --split train --metrics fid,is --n 50000
"""

CONVERT = """\
usage: lightning-gen convert --from diffusers|edm PATH --out MODEL.ckpt
       lightning-gen convert --to diffusers --ckpt_path PATH_OR_RUN_FOLDER --out FOLDER
       lightning-gen convert --from ema RUN_FOLDER --sigma_rel WIDTH --out MODEL.ckpt
       lightning-gen convert --from prior RUN_FOLDER [--prior mixture|flow] --out MODEL.ckpt

Make a checkpoint of another library's diffusion model or autoencoder, which sample, evaluate,
model.init_weights and model.codec take, or a folder of diffusers of one of ours. Nothing of a file is
executed, and diffusers need not be installed.
What the other side cannot do exactly is refused and named.

options:
  --from diffusers FOLDER   a pipeline or a model of diffusers: UNet2DModel or DiTTransformer2DModel with
                            its scheduler, and its autoencoder where it has one; AutoencoderKL, VQModel
  --from edm FILE           a network-snapshot-*.pkl of EDM: the average, EDM or VP preconditioning
  --from ema RUN_FOLDER     an average of any width, of the snapshots that EMASnapshots has written
  --sigma_rel WIDTH         its relative width, such as 0.1
  --images N                images seen until then (default: those of the last snapshot)
  --from prior RUN_FOLDER   a VAE whose samples' latents are drawn from a prior fitted to those of its data
  --prior mixture|flow      of ten Gaussians, or a flow (default: the model's own, else the mixture)
  --to diffusers            write unet/ or transformer/, scheduler/, vae/; an index where there is a pipeline
  --ckpt_path PATH          a checkpoint, or a run folder: then its newest checkpoint
  --weights NAME            ema, raw, ema-10000 ...: which weights go out (default: the first average)
  --out PATH                the checkpoint, or a new folder
  --nearest                 take the nearest of what cannot be mapped exactly, and say so
  --null_class              the last class of the U-Net stands for "none"

examples:
  lightning-gen convert --from diffusers ddpm-cifar10-32 --out ddpm.ckpt
  lightning-gen sample --ckpt_path ddpm.ckpt --n 16 --steps 50 --solver ddim --format grid
  lightning-gen convert --from edm edm-cifar10-32x32-uncond-vp.pkl --out edm.ckpt
  lightning-gen convert --to diffusers --ckpt_path runs/diffusion/cifar10_unet --weights ema --out mine
  lightning-gen convert --from ema runs/diffusion/cifar10_edm --sigma_rel 0.12 --out wider.ckpt
"""

SHARDS = """\
usage: lightning-gen shards FOLDER_OR_ZIP OUT [options]

Write the images of a folder or zip archive as shards: tar files as WebDataset has them, with an index beside
them. Folders train/, val/, test/ are the splits, folders below the classes, as for any folder of images.
Images that have their size already are stored as they are. Stopped, the same command continues where it was;
after a damaged shard was removed, it writes that one again. docs/data.md tells how to train from them.

options:
  OUT                       a new folder, or its address for fsspec: s3://bucket/folder, ...
  --size N                  height and width (default: as they are, all of one size)
  --resize crop|stretch|pad --filter bicubic|lanczos|box
                            how they get it (default: crop, bicubic)
  --channels 1|3            gray or RGB (default: gray if all are)
  --shard_mb N              about how large a shard gets, in 1e6 bytes (default: 64)
  --jpeg_quality N          store what is resized as JPEG, 1 to 100 (default: PNG, which loses nothing)
  --no_labels               folders are no classes
  --val_fraction X --test_fraction X
                            share of the images that become a split without a folder (default: 0.1)
  --on_error raise|skip     stop at a file that cannot be read, or leave it out and count it (default: raise)
  --seed N                  of the order in which training images are dealt to shards (default: 0)
  --name NAME               what protocols call the data (default: the folder's name)

examples:
  lightning-gen shards photos.zip shards/photos --size 256
  lightning-gen shards imagenet s3://bucket/imagenet64 --size 64 --on_error skip
  lightning-gen fit -c mine.yaml --data ShardsDataModule --data.path shards/photos
"""

LATENTS = """\
usage: lightning-gen latents CODEC DATA OUT [options]

Encode a data set once and write its latents, so that a latent model need not encode each image in every
epoch. The files name the codec and the images they were made of, and a model refuses those of another codec
or of other images. Stopped, the same command continues where it was.

options:
  CODEC                     a checkpoint or run folder of an Autoencoder or a VAE
  DATA                      a data set by name (mnist, cifar10, ...), or a folder, zip archive or shards
  OUT                       a new folder
  --data_root DIR --data_size N
                            where a named data set lies; height and width of a folder's images
  --weights NAME            of the codec: raw, ema, ... (default: the first average where there is one)
  --dtype float32|float16   of the files; float16 halves them (default: float32)
  --flip                    the training images mirrored too, for training with --data.images.flip true
  --on_error raise|skip     stop at a file of a folder that cannot be read, or leave it out (default: raise);
                            training on the latents is given the same (--data.images.on_error)
  --shard_mb N              about how large a file gets, in 1e6 bytes (default: 64)
  --batch_size N            images encoded at a time (default: 64)
  --device auto|cpu|cuda|mps  (default: auto)

examples:
  lightning-gen latents runs/autoencoder/cifar10_vqgan cifar10 latents/cifar10
  lightning-gen fit -c mine.yaml --data LatentsDataModule --data.path latents/cifar10 \\
    --data.images CIFAR10DataModule
"""

LIST = """\
usage: lightning-gen list [TEXT]

Show the packaged configurations, what they are and what they are recorded to reach; with TEXT, those that
have it in their name.

examples:
  lightning-gen list
  lightning-gen list gan
"""

PAGES = {
    "fit": FIT,
    "validate": _RUN.format(name="validate", what="Run a trained model on the validation split."),
    "test": _RUN.format(name="test", what="Run a trained model on the test split."),
    "predict": _RUN.format(
        name="predict",
        what="Draw the samples that a predict loader asks for, for a callback that writes them; see also `sample`.",
    ),
    "sample": SAMPLE,
    "evaluate": EVALUATE,
    "convert": CONVERT,
    "shards": SHARDS,
    "latents": LATENTS,
    "list": LIST,
}
