/**
 * The identities of the built-in face models. They are part of every face entry's key, so a new model never meets an
 * old one's values.
 */
export interface FaceModels {
  /** What found the faces: 1 to 100 of letters, digits, `.`, `_`, `-`, `@`, `/`. */
  readonly detection: string;
  /** What computed the vectors, likewise. */
  readonly embedding: string;
}

export const BUILT_IN_MODELS: FaceModels = {
  detection: 'ssd-mobilenet-v1@face-api-1.7',
  embedding: 'dlib-resnet-34-128@face-api-1.7',
};
