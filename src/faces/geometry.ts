/** Where faces lie: from the networks' points to the stored record, and from the record to the square to crop. */
import type { FaceDetection } from '../kinds/faces.js';
import { type Box, inside } from './sampling.js';

type Point = [x: number, y: number];

/** One face in pixels of the decoded image. */
export interface FoundFace {
  readonly score: number;
  readonly box: Box;
  /** The 68 points of iBUG 300-W, in its order. */
  readonly landmarks: readonly { x: number; y: number }[];
}

interface Frame {
  readonly width: number;
  readonly height: number;
  readonly scale: number;
}

/** The built-in detector's record: InsightFace's fields, and one more that its own recogniser needs. */
type AlignedDetection = FaceDetection & {
  /** Left eye, right eye (viewer's left first), nose tip, left and right corner of the mouth, like `bbox`'s pixels. */
  kps: Point[];
  /** The mean of the mouth's 20 points: dlib's third reference point, which the corners give only roughly. */
  mouth: Point;
};

/** dlib's chip: the mean of eyes and mouth lies at (0.5, 0.43), the distance eye to mouth is 0.45 of its side. */
const DLIB = { x: 0.5, y: 0.43, eyeToMouth: 0.45 };

/**
 * The same square, guessed from the box alone. Medians over the 22 faces of the sample photographs and their mirror
 * images: a side of 0.88 box heights, centred, 0.61 of the height down.
 */
const GUESS = { side: 0.88, x: 0.5, y: 0.61 };

/**
 * Landmarks fail on faces seen from above or from the side: their square is then a fraction of the box. Of those 44
 * faces one gives 0.30 of the box's height, all others 0.75 to 0.97. Without this check that one face's mirror image
 * is nearer to another woman (0.56) than to itself (0.67); with it every mirror image is within 0.48 of its original.
 */
const PLAUSIBLE_SIDE = 0.5;

/** One found face in pixels of the full upright image, to a hundredth of a pixel; the box is clipped to the image. */
export function detectionOf({ score, box, landmarks }: FoundFace, { width, height, scale }: Frame): AlignedDetection {
  const full = (value: number) => Math.round(100 * scale * value) / 100;
  const x = (value: number) => full(Math.min(Math.max(value, 0), width));
  const y = (value: number) => full(Math.min(Math.max(value, 0), height));
  // 300-W's order: eyes are 36 to 41 and 42 to 47, the nose tip is 30, the mouth 48 to 67 with corners 48 and 54.
  const mean = (from: number, to = from): Point => {
    const points = landmarks.slice(from, to + 1);
    const sum = points.reduce((total, point) => ({ x: total.x + point.x, y: total.y + point.y }), { x: 0, y: 0 });
    return [full(sum.x / points.length), full(sum.y / points.length)];
  };
  return {
    bbox: [x(box.x), y(box.y), x(box.x + box.width), y(box.y + box.height)],
    det_score: score,
    kps: [mean(36, 41), mean(42, 47), mean(30), mean(48), mean(54)],
    mouth: mean(48, 67),
  };
}

/**
 * What the recogniser is to see of a face: dlib's alignment as face-api computes it (`FaceLandmarks.alignDlib`), from
 * the record alone, so that detections from elsewhere can be embedded too. face-api's default, a padded box around
 * all landmarks, separates worse: of the 231 pairs among the 22 sample faces it puts 42 below distance 0.6, this 18.
 */
export function cropOf(face: FaceDetection, frame: Frame): Box {
  const points = referencePoints(face, frame.scale);
  const [x1, y1, x2, y2] = face.bbox.map((value) => value / frame.scale) as [number, number, number, number];
  const height = y2 - y1;
  const aligned = points && alignedSquare(points);
  if (aligned && aligned.width >= PLAUSIBLE_SIDE * height) return inside(aligned, frame);
  const side = Math.floor(GUESS.side * height);
  const [x, y] = [x1 + GUESS.x * (x2 - x1) - side / 2, y1 + GUESS.y * height - side / 2];
  return inside({ x, y, width: side, height: side }, frame);
}

/** Both eyes and the middle of the mouth, in reduced pixels; `undefined` where a detection has no usable points. */
function referencePoints({ kps, mouth }: FaceDetection, scale: number): [Point, Point, Point] | undefined {
  if (!Array.isArray(kps)) return undefined;
  const [leftEye, rightEye, , left, right] = kps;
  if (!isPoint(leftEye) || !isPoint(rightEye) || !isPoint(left) || !isPoint(right)) return undefined;
  const reduced = ([x, y]: Point): Point => [x / scale, y / scale];
  const middle: Point = isPoint(mouth) ? mouth : [(left[0] + right[0]) / 2, (left[1] + right[1]) / 2];
  return [reduced(leftEye), reduced(rightEye), reduced(middle)];
}

function alignedSquare([leftEye, rightEye, mouth]: [Point, Point, Point]): Box {
  const distance = (eye: Point) => Math.hypot(mouth[0] - eye[0], mouth[1] - eye[1]);
  const side = Math.floor((distance(leftEye) + distance(rightEye)) / 2 / DLIB.eyeToMouth);
  const centre = (axis: 0 | 1) => (leftEye[axis] + rightEye[axis] + mouth[axis]) / 3;
  return { x: centre(0) - DLIB.x * side, y: centre(1) - DLIB.y * side, width: side, height: side };
}

function isPoint(value: unknown): value is Point {
  return Array.isArray(value) && value.length === 2 && value.every(Number.isFinite);
}
